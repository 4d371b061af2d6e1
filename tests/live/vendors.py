"""Whom the suite can be run against, and with which of their models: each is told by the environment."""

import os
from typing import NamedTuple

from gateway.config.environment import DASHSCOPE_URL, OPENAI_URL


class Vendor(NamedTuple):
    """One API. `hybrid`: a model that thinks unless it is told not to, where there is one."""

    kind: str
    key: str
    url: str
    chat: str
    embeddings: str
    hybrid: str | None = None


def named(kind: str) -> Vendor:
    """What the environment says of it. Raises LookupError if it has no key."""
    return {"openai": _openai, "qwen": _qwen}[kind]()


def _openai() -> Vendor:
    return Vendor(
        "openai",
        _key("OPENAI_API_KEY"),
        os.environ.get("OPENAI_BASE_URL") or OPENAI_URL,
        os.environ.get("LIVE_OPENAI_MODEL") or "gpt-4o-mini",
        os.environ.get("LIVE_OPENAI_EMBEDDINGS") or "text-embedding-3-small",
    )


def _qwen() -> Vendor:
    return Vendor(
        "qwen",
        _key("DASHSCOPE_API_KEY"),
        os.environ.get("DASHSCOPE_BASE_URL") or DASHSCOPE_URL,
        os.environ.get("LIVE_QWEN_MODEL") or "qwen-flash",
        os.environ.get("LIVE_QWEN_EMBEDDINGS") or "text-embedding-v4",
        os.environ.get("LIVE_QWEN_HYBRID") or "qwen3-8b",
    )


def _key(variable: str) -> str:
    key = os.environ.get(variable)
    if not key:
        raise LookupError(f"{variable} is not set, so the real API is not asked")
    return key
