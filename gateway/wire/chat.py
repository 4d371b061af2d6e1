"""Reads the few members of OpenAI's bodies that the gateway decides on.

The hub of the project is OpenAI's wire format, but no schema of it is kept here: what is not read is not modelled, and
the original bytes go on (a 30-digit integer, key order and escapes survive). Strict about what could be read in two
ways, because a policy that sees one value while the upstream sees another is no policy. Must not know HTTP or upstreams.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import orjson

from gateway.call import Call, Kind, Usage
from gateway.errors import CallerError
from gateway.wire.members import SPACE, elements, members, value_end
from gateway.wire.patch import disguised
from gateway.wire.sse import Framer

MAX_DEPTH = 64
READ_KEYS = ("model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "user")

_QUOTED = [(key, b'"%s"' % key.encode()) for key in READ_KEYS]
_COLON = re.compile(SPACE + b":" + SPACE)
_SMALL = 4096  # bytes of a body up to which it is faster to count in it than to look at its structure
_LONG = 16  # values beyond which it is faster to take their types together
_PROMPT = {"chat": "messages", "completions": "prompt", "embeddings": "input"}


def read_call(kind: Kind, body: bytes) -> Call:
    """The Call that `body` asks for. Raises CallerError (400) with what is wrong and where, never with the input."""
    read = _parse(body)
    _refuse_depth(body, read)
    at = _locate(body, read)
    model = read.get("model")
    if not isinstance(model, str) or not model:
        raise CallerError(
            "You must provide a model parameter, a non-empty string.", code="missing_model", param="model"
        )
    streams = kind in ("chat", "completions")
    options = _optional(read, "stream_options", dict, "an object") if streams else None
    return Call(
        kind=kind,
        model=model,
        body=body,
        model_at=at["model"],
        stream=bool(streams and _optional(read, "stream", bool, "a boolean")),
        wants_usage=bool(options and options.get("include_usage")),
        options_at=at.get("stream_options"),
        prompt_chars=_characters(read.get(_PROMPT.get(kind, ""))),
        choices=_choices_asked_for(read),
    )


def _choices_asked_for(read: dict[str, Any]) -> int:
    n, prompt = read.get("n"), read.get("prompt")
    each = n if type(n) is int and n > 0 else 1
    prompts = len(prompt) if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list) else 1
    return each * prompts


def _parse(body: bytes) -> dict[str, Any]:
    try:
        read = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if error.msg.startswith("depth limit"):
            raise _too_deep() from None
        line, column = _not_text(body) or (error.lineno, error.colno)
        raise CallerError(f"The body is not valid JSON (line {line}, column {column}).", code="invalid_json") from None
    if not isinstance(read, dict):
        raise CallerError("The body must be a JSON object.", code="invalid_json")
    return read


def _not_text(body: bytes) -> tuple[int, int] | None:
    """The line and column where the body ceases to be UTF-8, which the parser does not tell."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        before = body[: error.start].decode()
        return before.count("\n") + 1, len(before) - before.rfind("\n")
    return None


def _optional(read: dict[str, Any], key: str, type_: type, words: str) -> Any:
    value = read.get(key)
    if value is not None and not isinstance(value, type_):
        raise CallerError(f"{key} must be {words}.", code="invalid_type", param=key)
    return value


def _too_deep() -> CallerError:
    return CallerError(f"The body is nested more than {MAX_DEPTH} levels deep.", code="json_too_deep")


def _refuse_depth(body: bytes, read: dict[str, Any]) -> None:
    if len(body) <= _SMALL and body.count(b"{") + body.count(b"[") <= MAX_DEPTH:
        return
    level: list[Any] = [read]
    for _ in range(MAX_DEPTH):
        level = [
            value
            for container in level
            for value in (container.values() if type(container) is dict else _perhaps_nested(container))
            if type(value) is dict or type(value) is list
        ]
        if not level:
            return
    raise _too_deep()


def _perhaps_nested(values: list[Any]) -> list[Any]:
    """The values of a list; none of one without containers, such as a long list of tokens."""
    return [] if len(values) > _LONG and {dict, list}.isdisjoint(map(type, values)) else values


def _locate(body: bytes, read: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Where the values of model and stream_options stand in `body`, the object that `read` was read from.

    Parsers differ in which of two equal names they keep, and what is read here must be what the upstream reads: so a
    second one at the top level is refused. A name that is there, and stands in quotes once in the whole body, can only
    be that one at the top level.
    """
    if len(body) > _SMALL or any(key in read and body.count(quoted) != 1 for key, quoted in _QUOTED):
        return _locate_exactly(body)
    if "model" not in read or "stream_options" in read or disguised(body):
        return _locate_exactly(body)
    colon = _COLON.match(body, body.index(b'"model"') + 7)
    return _locate_exactly(body) if colon is None else {"model": (colon.end(), value_end(body, colon.end()))}


def _locate_exactly(body: bytes) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for member in members(body):
        name = member.name.decode()
        if name in found:
            raise CallerError(f"{name} is given more than once.", code="duplicate_key", param=name)
        if name in READ_KEYS:
            found[name] = (member.start, member.end)
    return found


def _characters(prompt: Any) -> int:
    """Characters of text in a prompt: a string, strings, token lists, or messages with content or parts."""
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
        elif isinstance(item, list) and item and type(item[0]) is not int:
            stack += item
    return total


def _object(written: list[bytes]) -> bytes:
    return b"{" + b",".join(written) + b"}"


# What comes back.

_ABSENT = msgspec.Raw(b"")
_NOTHING = (b"", b"null")
_FALSE = (*_NOTHING, b"{}", b'""', b"false", b"0", b"[]")
_NULL_VALUE = re.compile(SPACE + b":" + SPACE + b"null" + SPACE)


class Chunk(msgspec.Struct, gc=False):
    """A stream's event or a plain reply, as far as it is read: members are left as the bytes that they came in."""

    choices: msgspec.Raw = _ABSENT
    usage: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT
    object: msgspec.Raw = _ABSENT
    data: msgspec.Raw = _ABSENT
    code: msgspec.Raw = _ABSENT
    message: msgspec.Raw = _ABSENT

    @property
    def failed(self) -> bool:
        """It tells of an error: in OpenAI's way, on which an SDK would raise, or in a flat one.

        SGLang's says that it is an error; DashScope's own is a code and a message in place of what was asked for.
        """
        if self.error is not _ABSENT and bytes(self.error) not in _FALSE:
            return True
        if self.choices is not _ABSENT or self.data is not _ABSENT:
            return False
        if self.code is _ABSENT or self.message is _ABSENT:
            return bytes(self.object) == b'"error"'
        return bytes(self.code) not in _FALSE and bytes(self.message) not in _FALSE

    @property
    def has_usage(self) -> bool:
        """It carries token counts."""
        return bytes(self.usage) not in _NOTHING

    @property
    def empty(self) -> bool:
        """It carries no choice, as the extra event does that only reports usage."""
        return bytes(self.choices) in _NOTHING or bytes(self.choices)[1:-1].strip() == b""


_decode_chunk = msgspec.json.Decoder(Chunk).decode


def read_chunk(data: bytes) -> Chunk:
    """Raises msgspec.DecodeError (and its ValidationError) on anything but a JSON object.

    Strings that nobody here reads are passed over, and need not be UTF-8: see docs/adr/0003.
    """
    try:
        return _decode_chunk(data)
    except RecursionError:
        raise msgspec.DecodeError("nested too deeply") from None


def read_usage(raw: bytes | msgspec.Raw) -> Usage | None:
    """Token counts in OpenAI's names. None where there are none, or none to believe; a missing part is 0."""
    try:
        counts = orjson.loads(bytes(raw))
    except orjson.JSONDecodeError:
        return None
    if not isinstance(counts, dict):
        return None
    tokens = {key: counts[key] for key in ("prompt_tokens", "completion_tokens") if counts.get(key) is not None}
    if not tokens or not all(_sane(count) for count in tokens.values()):
        return None
    usage = Usage(input=tokens.get("prompt_tokens", 0), output=tokens.get("completion_tokens", 0))
    usage.cached = _part(counts.get("prompt_tokens_details"), "cached_tokens", usage.input)
    usage.reasoning = _part(counts.get("completion_tokens_details"), "reasoning_tokens", usage.output)
    return usage


def _sane(count: object) -> bool:
    return type(count) is int and 0 <= count < 1_000_000_000


def _part(details: object, key: str, whole: int) -> int:
    count = details.get(key) if isinstance(details, dict) else None
    return min(count, whole) if isinstance(count, int) and _sane(count) else 0


def has_content(choices: bytes | msgspec.Raw) -> bool:
    """Whether a chunk's choices carry anything that was generated: not a role alone, not a finish alone."""
    return any(_generated(choice) for choice in _choices(bytes(choices)))


def _generated(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta")
    carried = [value for key, value in delta.items() if key != "role"] if isinstance(delta, dict) else []
    return any(carried) or bool(choice.get("text"))


def finished(data: bytes) -> set[int]:
    """The indices of the choices of which an event says why they ended."""
    try:
        chunk = read_chunk(data)
    except msgspec.DecodeError:
        return set()
    ended = (choice for choice in _choices(bytes(chunk.choices)) if choice.get("finish_reason"))
    return {index for choice in ended if isinstance(index := choice.get("index", 0), int)}


def _choices(raw: bytes) -> Iterator[dict[str, Any]]:
    try:
        choices = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return
    if isinstance(choices, list):
        yield from (choice for choice in choices if isinstance(choice, dict))


def without_null_usage(event: bytes) -> bytes:
    """An event without the top-level `"usage":null` that the upstream sent because the gateway asked for usage.

    Call it for an event whose top-level usage is null. One that is not written as nearly all are (one line, one
    `"usage"`) is put together anew from its members, and what it had beside its data is lost.
    """
    start = event.find(b'"usage"')
    value = _NULL_VALUE.match(event, start + 7)
    if value is None or event.find(b'"usage"', start + 7) != -1 or event.find(b"\n") != len(event) - 2:
        return _without_usage(event)
    if event.find(b"\r") >= 0 or event.find(b"\\u00") >= 0:
        return _without_usage(event)
    before, after = event[:start].rstrip(), event[value.end() :]
    if before.endswith(b","):
        return before[:-1] + after
    return before + after.removeprefix(b",").lstrip()


def _without_usage(event: bytes) -> bytes:
    (_, data), *_ = Framer(limit=len(event)).feed(event)
    data = data or b""
    return _event(_object([data[member.at : member.end] for member in members(data) if member.name != b"usage"]))


def _event(data: bytes) -> bytes:
    """`data` as an event, in one line: JSON has line ends only where it may as well have spaces."""
    return b"data: " + data.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n\n"


def as_stream(body: bytes, *, with_usage: bool) -> list[bytes]:
    """A plain reply as the events of a stream, for an upstream that was asked for one and sent the other.

    `body`: what read_chunk has accepted. All but the names that streams have others for goes on as it was written.
    """
    reply = _values(body)
    usage = reply.pop(b'"usage"', b"null")
    if reply.get(b'"object"') == b'"chat.completion"':
        reply[b'"object"'] = b'"chat.completion.chunk"'
    reply[b'"choices"'] = _mapped(reply.get(b'"choices"', b"[]"), _with_delta)
    events = [reply]
    if with_usage and usage not in _NOTHING:
        events.append(reply | {b'"choices"': b"[]", b'"usage"': usage})
    return [*(_event(_object(_written(event))) for event in events), b"data: [DONE]\n\n"]


def _with_delta(_index: int, choice: dict[bytes, bytes]) -> dict[bytes, bytes]:
    if (message := choice.pop(b'"message"', b"")).startswith(b"{"):
        delta = _values(message)
        if b'"tool_calls"' in delta:
            delta[b'"tool_calls"'] = _mapped(delta[b'"tool_calls"'], _with_index)
        choice[b'"delta"'] = _object(_written(delta))
    return choice


def _with_index(index: int, tool_call: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {b'"index"': b"%d" % index} | tool_call


def _values(text: bytes) -> dict[bytes, bytes]:
    """An object's values by their names, both as they are written."""
    return {text[at:start].rstrip(b": \t\r\n"): text[start:end] for _, at, start, end in members(text)}


def _written(values: dict[bytes, bytes]) -> list[bytes]:
    return [name + b":" + value for name, value in values.items()]


def _mapped(array: bytes, change: Callable[[int, dict[bytes, bytes]], dict[bytes, bytes]]) -> bytes:
    """An array with `change` made to every object in it, by its index; anything but an array is left alone."""
    if not array.startswith(b"["):
        return array
    changed = [
        _object(_written(change(index, _values(element)))) if element.startswith(b"{") else element
        for index, element in enumerate(elements(array))
    ]
    return b"[" + b",".join(changed) + b"]"
