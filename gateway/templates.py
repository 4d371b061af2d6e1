"""Reads what a model brings beside its weights: its chat template, its special tokens, and how it counts.

From a Hugging Face folder, or from a template alone. Read once, at the start, so that whatever is missing or broken is told
then. The tokenizer is an extra of this package; it counts tokens, and nothing that is sent depends on it.
"""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from gateway.dialects.template import Template, TemplateError

__all__ = ["TemplateError", "load"]

_LARGEST = 64 << 20  # bytes


def load(path: Path, now: Callable[[], datetime] = datetime.now) -> Template:
    """A Hugging Face folder, or a `.jinja` file, which can't count. Raises TemplateError, with what is wrong in one line."""

    def strftime_now(form: str) -> str:
        return now().strftime(form)

    if not path.is_dir():
        return Template(_text(path), {}, strftime_now)
    config = _object(path / "tokenizer_config.json")
    special = _special({**_object(path / "special_tokens_map.json"), **config})
    return Template(_source(path, config), special, strftime_now, _counter(path / "tokenizer.json"))


def _source(folder: Path, config: Mapping[str, Any]) -> str:
    """The template: in a file of its own, as newer folders have it, or within the tokenizer's config."""
    if (own := folder / "chat_template.jinja").exists():
        return _text(own)
    found = _object(folder / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(found, list):  # several, each with a name
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    if not isinstance(found, str):
        raise TemplateError(f"no chat template in {folder.name}: chat_template.jinja, or in tokenizer_config.json")
    return found


def _special(config: Mapping[str, Any]) -> dict[str, str]:
    """Tokens are given as text, or as an object with the text and how it is treated."""
    found = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


def _counter(path: Path) -> Callable[[str], int] | None:
    if not path.exists():
        return None
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415  # an extra
    except ImportError:
        raise TemplateError("counting tokens needs tokenizers: install gateway[triton]") from None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception:  # noqa: BLE001  # the library raises nothing more particular
        raise TemplateError(f"{path.name} is not a tokenizer that can be read") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return count


def _object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no such file."""
    if not path.exists():
        return {}
    try:
        found = json.loads(_text(path))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise TemplateError(f"{path.name} is not a JSON object")
    return found


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST:
            raise TemplateError(f"{path.name} is over {_LARGEST >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except OSError as failure:
        raise TemplateError(f"cannot be read: {path.name}: {failure.strerror}") from None
    except UnicodeDecodeError:
        raise TemplateError(f"{path.name} is not UTF-8") from None
