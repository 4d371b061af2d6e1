"""`gateway demo`: everything but the upstream is real, and the upstream is a script in this process.

It needs no key and no network, so that the first answer is a minute away. Must not be used by anything but the demo.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson

from gateway.config import Settings

_TEXT = "This answer was streamed through the gateway by a scripted upstream, one word at a time."
_WORDS = _TEXT.split(" ")
_PAUSE = 0.05  # seconds between words
_CREATED = 1_700_000_000


def demo_settings(port: int, admin_port: int) -> Settings:
    """Settings for one model, `demo`, on this machine only, for anybody."""
    return Settings.model_validate(
        {
            "server": {"host": "127.0.0.1", "port": port, "admin_port": admin_port, "drain_seconds": 5},
            "auth": {"required": False},
            "upstreams": {"demo": {"kind": "openai", "url": "http://demo.invalid/v1"}},
            "models": {"demo": {"targets": [{"upstream": "demo"}]}},
        }
    )


class DemoUpstream(httpx.AsyncBaseTransport):
    """Answers chat and completions with the same sentence, embeddings with the same vector."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """A reply as OpenAI's API would shape it."""
        asked: dict[str, Any] = orjson.loads(await request.aread())
        kind = request.url.path.rpartition("/v1/")[2]
        if kind == "embeddings":
            return _json({"object": "list", "data": [_VECTOR], "model": "demo", "usage": _usage(asked, 0)})
        chat = kind == "chat/completions"
        if asked.get("stream"):
            return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=_Words(asked, chat=chat))
        choice = {"message": {"role": "assistant", "content": _TEXT}} if chat else {"text": _TEXT}
        reply = _envelope(chat=chat, choices=[{"index": 0, **choice, "finish_reason": "stop"}])
        return _json({**reply, "object": reply["object"].removesuffix(".chunk"), "usage": _usage(asked, len(_WORDS))})


_VECTOR = {"object": "embedding", "index": 0, "embedding": [0.0, 0.6, 0.8]}


def demo_transport() -> httpx.AsyncBaseTransport:
    """The scripted upstream."""
    return DemoUpstream()


class _Words(httpx.AsyncByteStream):
    def __init__(self, asked: dict[str, Any], *, chat: bool) -> None:
        self._asked = asked
        self._chat = chat

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for number, word in enumerate(_WORDS):
            text = word if number == 0 else f" {word}"
            yield self._event([{"index": 0, **self._piece(text, number), "finish_reason": None}])
            await asyncio.sleep(_PAUSE)
        yield self._event([{"index": 0, **({"delta": {}} if self._chat else {"text": ""}), "finish_reason": "stop"}])
        if (self._asked.get("stream_options") or {}).get("include_usage"):
            yield self._event([], usage=_usage(self._asked, len(_WORDS)))
        yield b"data: [DONE]\n\n"

    def _piece(self, text: str, number: int) -> dict[str, Any]:
        if not self._chat:
            return {"text": text}
        return {"delta": {"role": "assistant", "content": text} if number == 0 else {"content": text}}

    def _event(self, choices: list[dict[str, Any]], **more: object) -> bytes:
        return b"data: " + orjson.dumps({**_envelope(chat=self._chat, choices=choices), **more}) + b"\n\n"


def _envelope(*, chat: bool, choices: list[dict[str, Any]]) -> dict[str, Any]:
    kind = "chat.completion.chunk" if chat else "text_completion"
    return {"id": "demo-1", "object": kind, "created": _CREATED, "model": "demo", "choices": choices}


def _usage(asked: dict[str, Any], output: int) -> dict[str, int]:
    prompt = len(orjson.dumps(asked.get("messages") or asked.get("prompt") or asked.get("input") or "")) // 4
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def _json(value: object) -> httpx.Response:
    return httpx.Response(200, headers={"content-type": "application/json"}, stream=_Whole(orjson.dumps(value)))


class _Whole(httpx.AsyncByteStream):
    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body
