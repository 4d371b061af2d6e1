"""Reads the few members of OpenAI's bodies that the gateway decides on, and patches them in place.

The hub of the project is OpenAI's wire format, but no schema of it is kept here: what is not read is not modelled, and
the original bytes go on (a 30-digit integer, key order and escapes survive). Strict about what could be read in two
ways, because a policy that sees one value while the upstream sees another is no policy. Must not know HTTP or upstreams.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import orjson

from gateway.call import Call, Kind, Usage
from gateway.errors import CallerError

MAX_DEPTH = 64
READ_KEYS = ("model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "user")

_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_SPACE = rb"[ \t\r\n]*"
_TOKEN = re.compile(_STRING + rb"|[][{}:,]", re.DOTALL)
# A name that is read, at any depth; or the start of a string that could be such a name in disguise ("mod\u0065l").
_READ_NAME = re.compile(rb'"(?:(' + "|".join(READ_KEYS).encode() + rb')"' + _SPACE + rb":|[a-z_]*\\u00[567])")
_VALUE = re.compile(_SPACE + b"(" + _STRING + b")", re.DOTALL)
_PROMPT = {"chat": "messages", "completions": "prompt", "embeddings": "input"}


def read_call(kind: Kind, body: bytes) -> Call:
    """The Call that `body` asks for. Raises CallerError (400) with what is wrong and where, never with the input."""
    members = _parse(body)
    _refuse_depth(members)
    at = _locate(body)
    model = members.get("model")
    if not isinstance(model, str) or not model:
        raise CallerError(
            "You must provide a model parameter, a non-empty string.", code="missing_model", param="model"
        )
    streams = kind in ("chat", "completions")
    options = _optional(members, "stream_options", dict, "an object") if streams else None
    return Call(
        kind=kind,
        model=model,
        body=body,
        model_at=at["model"],
        stream=bool(streams and _optional(members, "stream", bool, "a boolean")),
        wants_usage=bool(options and options.get("include_usage")),
        options_at=at.get("stream_options"),
        prompt_chars=_characters(members.get(_PROMPT.get(kind, ""))),
    )


def _parse(body: bytes) -> dict[str, Any]:
    try:
        members = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if error.msg.startswith("depth limit"):
            raise _too_deep() from None
        where = f"line {error.lineno}, column {error.colno}"
        raise CallerError(f"The body is not valid JSON ({where}).", code="invalid_json") from None
    if not isinstance(members, dict):
        raise CallerError("The body must be a JSON object.", code="invalid_json")
    return members


def _optional(members: dict[str, Any], key: str, type_: type, words: str) -> Any:
    value = members.get(key)
    if value is not None and not isinstance(value, type_):
        raise CallerError(f"{key} must be {words}.", code="invalid_type", param=key)
    return value


def _too_deep() -> CallerError:
    return CallerError(f"The body is nested more than {MAX_DEPTH} levels deep.", code="json_too_deep")


def _refuse_depth(members: dict[str, Any]) -> None:
    level: list[Any] = [members]
    for _ in range(MAX_DEPTH):
        level = [
            value
            for container in level
            for value in (container.values() if type(container) is dict else container)
            if type(value) is dict or type(value) is list
        ]
        if not level:
            return
    raise _too_deep()


def _locate(body: bytes) -> dict[str, tuple[int, int]]:
    """Where the values of the names that are read stand in `body`, a valid JSON object.

    Parsers differ in which of two equal names they keep, and what is read here must be what the upstream reads: so a
    second one at the top level is refused. Where a name stands once in the whole body, that one is the top level's.
    """
    found: dict[str, tuple[int, int]] = {}
    for match in _READ_NAME.finditer(body):
        key = match[1]
        if key is None or key.decode() in found:
            return _locate_exactly(body)
        found[key.decode()] = (match.end(), -1)
    if "model" in found and (value := _VALUE.match(body, found["model"][0])) is not None:
        found["model"] = value.span(1)
        if "stream_options" not in found:
            return found
    return _locate_exactly(body)


def _locate_exactly(body: bytes) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for member in _members(body):
        if member.key in found:
            raise CallerError(f"{member.key} is given more than once.", code="duplicate_key", param=member.key)
        if member.key in READ_KEYS:
            found[member.key] = (member.start, member.end)
    return found


class _Member(NamedTuple):
    key: str
    start: int  # of the value
    end: int


def _members(body: bytes) -> Iterator[_Member]:
    """The top-level members of a valid JSON object, with where each value stands."""
    depth = 0
    key: str | None = None
    last: bytes = b""
    start = 0
    for token in _TOKEN.finditer(body):
        text = token.group()
        if depth == 1 and text == b":" and key is None:
            key, start = orjson.loads(last), token.end()
        elif depth == 1 and text in (b",", b"}"):
            if key is not None:
                yield _Member(key, *_trim(body, start, token.start()))
            key = None
        last = text
        depth += (text in (b"{", b"[")) - (text in (b"}", b"]"))


def _trim(body: bytes, start: int, end: int) -> tuple[int, int]:
    value = body[start:end]
    return start + len(value) - len(value.lstrip()), end - len(value) + len(value.rstrip())


def _characters(prompt: Any) -> int:
    """Characters of text in a prompt: a string, strings, token lists, or messages with content or parts."""
    if isinstance(prompt, str):
        return len(prompt)
    total = 0
    stack = [prompt]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            item = item.get("content", item.get("text"))
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, dict):
            stack.append(item)
        elif isinstance(item, list):
            stack.extend(value for value in item if not isinstance(value, int))
    return total


def patched(call: Call, *, model: str | None = None, include_usage: bool = False) -> bytes:
    """The call's body with another model, or with `stream_options.include_usage` set, and nothing else touched."""
    body = call.body
    edits: list[tuple[int, int, bytes]] = []
    if model is not None:
        edits.append((*call.model_at, orjson.dumps(model)))
    if include_usage:
        edits.append(_ask_for_usage(call))
    for start, end, text in sorted(edits, reverse=True):
        body = body[:start] + text + body[end:]
    return body


def _ask_for_usage(call: Call) -> tuple[int, int, bytes]:
    if call.options_at is None:
        at = call.body.index(b"{") + 1
        return at, at, b'"stream_options":{"include_usage":true},'
    start, end = call.options_at
    options = json.loads(call.body[start:end]) or {}
    return start, end, json.dumps(options | {"include_usage": True}).encode()


# What comes back.

_ABSENT = msgspec.Raw(b"")
_NOTHING = (b"", b"null")
_NULL_VALUE = re.compile(_SPACE + b":" + _SPACE + b"null" + _SPACE)


class Chunk(msgspec.Struct, gc=False):
    """A stream's event or a plain reply, as far as it is read: members are left as the bytes that they came in."""

    choices: msgspec.Raw = _ABSENT
    usage: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT

    @property
    def failed(self) -> bool:
        """It tells of an error."""
        return bytes(self.error) not in _NOTHING

    @property
    def has_usage(self) -> bool:
        """It carries token counts."""
        return bytes(self.usage) not in _NOTHING

    @property
    def empty(self) -> bool:
        """It carries no choice, as the extra event does that only reports usage."""
        return bytes(self.choices).strip() in (b"", b"null", b"[]")


read_chunk = msgspec.json.Decoder(Chunk).decode
"""bytes -> Chunk; raises msgspec.DecodeError (and its ValidationError) on anything but a JSON object."""


def read_usage(raw: bytes | msgspec.Raw) -> Usage | None:
    """Token counts in OpenAI's names; what is missing or is no sane count is 0. None where there is no object."""
    try:
        counts = orjson.loads(bytes(raw))
    except orjson.JSONDecodeError:
        return None
    if not isinstance(counts, dict):
        return None
    return Usage(
        input=_count(counts, "prompt_tokens"),
        output=_count(counts, "completion_tokens"),
        cached=_count(counts.get("prompt_tokens_details"), "cached_tokens"),
        reasoning=_count(counts.get("completion_tokens_details"), "reasoning_tokens"),
    )


def _count(counts: object, key: str) -> int:
    value = counts.get(key) if isinstance(counts, dict) else None
    sane = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1_000_000_000
    return value if sane and isinstance(value, int) else 0


def has_content(choices: bytes | msgspec.Raw) -> bool:
    """Whether a chunk's choices carry anything that was generated: not a role alone, not a finish alone."""
    try:
        return any(_generated(choice) for choice in orjson.loads(bytes(choices)) or ())
    except (orjson.JSONDecodeError, TypeError):
        return False


def _generated(choice: object) -> bool:
    if not isinstance(choice, dict):
        return False
    delta = choice.get("delta")
    carried = [value for key, value in delta.items() if key != "role"] if isinstance(delta, dict) else []
    return any(carried) or bool(choice.get("text"))


def has_finish(data: bytes) -> bool:
    """Whether an event says why a choice ended."""
    try:
        choices = orjson.loads(data).get("choices")
        return any(choice.get("finish_reason") for choice in choices or ())
    except (orjson.JSONDecodeError, AttributeError, TypeError):
        return False


def without_null_usage(event: bytes) -> bytes:
    """An event without the top-level `"usage":null` that the upstream sent because the gateway asked for usage.

    Call it for an event whose top-level usage is null. Where that name stands more than once the event is re-encoded.
    """
    start = event.find(b'"usage"')
    value = _NULL_VALUE.match(event, start + 7)
    if value is None or event.find(b'"usage"', start + 7) != -1:
        members = [member for member in _members_of_event(event) if member[0] != "usage"]
        return b"data: {" + b",".join(orjson.dumps(key) + b":" + value for key, value in members) + b"}\n\n"
    before, after = event[:start].rstrip(), event[value.end() :]
    if before.endswith(b","):
        return before[:-1] + after
    return before + after.removeprefix(b",").lstrip()


def _members_of_event(event: bytes) -> list[tuple[str, bytes]]:
    data = event[event.index(b"{") : event.rindex(b"}") + 1]
    return [(member.key, data[member.start : member.end]) for member in _members(data)]


def as_stream(body: bytes, *, with_usage: bool) -> list[bytes]:
    """A plain reply as the events of a stream, for an upstream that was asked for one and sent the other."""
    reply = orjson.loads(body)
    usage = reply.pop("usage", None)
    for choice in reply.get("choices") or ():
        if isinstance(choice, dict) and isinstance(message := choice.pop("message", None), dict):
            choice["delta"] = _numbered(message)
    if reply.get("object") == "chat.completion":
        reply["object"] = "chat.completion.chunk"
    events = [reply, {**reply, "choices": [], "usage": usage}] if with_usage and usage else [reply]
    return [b"data: " + orjson.dumps(event) + b"\n\n" for event in events] + [b"data: [DONE]\n\n"]


def _numbered(message: dict[str, Any]) -> dict[str, Any]:
    """A message as a delta, in which every tool call has its index."""
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        message["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls) if isinstance(call, dict)]
    return message
