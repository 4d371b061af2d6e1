"""The chunks of a stream put together into the one reply that they would have been.

For callers who asked for a plain reply where the upstream can only stream. Must not know why, nor HTTP.
"""

from typing import Any

import msgspec
import orjson

from gateway.wire.chat import read_chunk

_DONE = b"[DONE]"
_PADDING = "obfuscation"  # of chunks, against listeners who count bytes
# Strings that are said once, or again with each piece; all others are text that comes in pieces.
_WHOLE = frozenset(("role", "name", "type", "id"))
_BRACKETS = 200  # in an event, up to which it can't be nested too deeply to be written


class _Text:
    """A string that comes in pieces."""

    __slots__ = ("_pieces",)

    def __init__(self, piece: str) -> None:
        self._pieces = [piece]

    def add(self, piece: str) -> None:
        self._pieces.append(piece)

    def __str__(self) -> str:
        return "".join(self._pieces)


class Gathered:
    """The reply so far. `choices`: how many were asked for.

    `size`: bytes taken; `done`: nothing more is expected; `invalid`: the last event could not be read.
    """

    def __init__(self, choices: int = 1) -> None:
        self._asked = choices
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._usage: Any = None
        self.size = 0
        self.done = False
        self.invalid = False

    @property
    def complete(self) -> bool:
        """The upstream has said that this is all: by `[DONE]`, or of each choice why it ended."""
        if self.invalid or not self._choices:
            return False
        ended = [choice for choice in self._choices.values() if choice.get("finish_reason")]
        return self.done or len(ended) >= max(self._asked, len(self._choices))

    def take(self, data: bytes) -> bool:
        """One event's data. True if it tells of an error."""
        self.size += len(data)
        if data.strip() == _DONE:
            self.done = True
            return False
        try:
            if read_chunk(data).failed:
                return True
            chunk = _read(data)
        except (msgspec.DecodeError, orjson.JSONDecodeError, orjson.JSONEncodeError):
            self.done = self.invalid = True
            return False
        self._merge(chunk)
        return False

    def _merge(self, chunk: dict[str, Any]) -> None:
        choices = chunk.pop("choices", None)
        self._usage = chunk.pop("usage", None) or self._usage
        chunk.pop(_PADDING, None)
        for name, value in chunk.items():
            if not self._head.get(name):  # Azure's first chunk has them empty
                self._head[name] = value
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                index = choice.pop("index", 0)
                index = index if type(index) is int else 0
                _merge_choice(self._choices.setdefault(index, {"index": index}), choice)

    def reply(self) -> bytes:
        """As the upstream would have sent it at once."""
        head = dict(self._head)
        if head.get("object") == "chat.completion.chunk":
            head["object"] = "chat.completion"
        choices = [self._choices[index] for index in sorted(self._choices)]
        usage = {} if self._usage is None else {"usage": self._usage}
        return orjson.dumps({**head, "choices": choices, **usage}, default=_written)


class _ToolCalls:
    """Calls of tools, each of which comes in pieces: told apart by index, or by id where an engine gives none."""

    __slots__ = ("_known", "calls")

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self._known: dict[object, dict[str, Any]] = {}

    def add(self, pieces: list[Any]) -> None:
        for piece in pieces:
            if isinstance(piece, dict):
                _merge(self._call(piece.pop("index", None), piece.get("id")), piece)

    def _call(self, index: object, id_: object) -> dict[str, Any]:
        """The call that a piece belongs to: without index and id, the last one."""
        key = index if type(index) is int else id_ if isinstance(id_, str) and id_ else None
        if key is None and self.calls:
            return self.calls[-1]
        if key not in self._known:
            self._known[key] = {}
            self.calls.append(self._known[key])
        return self._known[key]


def _written(part: object) -> object:
    return part.calls if isinstance(part, _ToolCalls) else str(part)


def _read(data: bytes) -> dict[str, Any]:
    chunk: dict[str, Any] = orjson.loads(data.decode("utf-8", "replace"))
    if data.count(b"{") + data.count(b"[") > _BRACKETS:
        orjson.dumps([[chunk]])  # raises where it is nested too deeply to be written again
    return chunk


def _merge_choice(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    said = piece.pop("message", None)
    delta = piece.pop("delta", said)
    if isinstance(delta, dict):
        message = whole.setdefault("message", {"role": "assistant", "content": None})
        tools = delta.pop("tool_calls", None)
        if isinstance(tools, list):
            message.setdefault("tool_calls", _ToolCalls()).add(tools)
        _merge(message, delta)
    whole["finish_reason"] = piece.pop("finish_reason", None) or whole.get("finish_reason")
    _merge(whole, piece)


def _merge(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    """Text and lists are added to what is there, objects member by member; anything else takes the place of what was."""
    for name, value in piece.items():
        known = whole.get(name)
        if value is None or (value == "" and name in _WHOLE):
            whole.setdefault(name, value)
        elif isinstance(value, dict):
            if not isinstance(known, dict):
                known = whole[name] = {}
            _merge(known, value)
        elif isinstance(value, str) and name not in _WHOLE:
            if isinstance(known, _Text):
                known.add(value)
            else:
                whole[name] = _Text(value)
        elif isinstance(value, list) and isinstance(known, list):
            known += value
        else:
            whole[name] = value
