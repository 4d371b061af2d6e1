"""The chunks of a stream put together into the one reply that they would have been.

For callers who asked for a plain reply where the upstream can only stream. Must not know why, nor HTTP.
"""

from typing import Any

import orjson

_DONE = b"[DONE]"


class Gathered:
    """The reply so far. `size`: bytes taken; `done`: nothing more is expected."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._usage: Any = None
        self.size = 0
        self.done = False
        self.invalid = False

    @property
    def complete(self) -> bool:
        """Every choice that there is has said why it ended."""
        ended = [choice.get("finish_reason") for choice in self._choices.values()]
        return not self.invalid and bool(ended) and all(ended)

    def take(self, data: bytes) -> bool:
        """One event's data. True if it tells of an error."""
        self.size += len(data)
        if data.strip() == _DONE:
            self.done = True
            return False
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            chunk = None
        if not isinstance(chunk, dict):
            self.done = self.invalid = True
            return False
        if chunk.get("error") or chunk.get("object") == "error":
            return True
        self._merge(chunk)
        return False

    def _merge(self, chunk: dict[str, Any]) -> None:
        choices = chunk.pop("choices", None)
        self._usage = chunk.pop("usage", None) or self._usage
        self._head = {**chunk, **self._head}
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                index = choice.get("index")
                _merge_choice(self._choices.setdefault(index if isinstance(index, int) else 0, {}), choice)

    def reply(self) -> bytes:
        """As OpenAI would have sent it at once."""
        head = dict(self._head)
        if head.get("object") == "chat.completion.chunk":
            head["object"] = "chat.completion"
        choices = [self._choices[index] for index in sorted(self._choices)]
        for choice in choices:
            for call in choice.get("message", {}).get("tool_calls") or ():
                call.pop("index", None)
        return orjson.dumps({**head, "choices": choices, **({} if self._usage is None else {"usage": self._usage})})


def _merge_choice(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    for name, value in piece.items():
        if name == "delta":
            if isinstance(value, dict):
                _merge_delta(whole.setdefault("message", {"role": "assistant", "content": None}), value)
        elif name == "text" and isinstance(value, str):
            whole["text"] = whole.get("text", "") + value
        elif name == "logprobs" and isinstance(value, dict):
            _merge_logprobs(whole.setdefault("logprobs", {}), value)
        elif value is not None or name not in whole:
            whole[name] = value


def _merge_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if name == "tool_calls" and isinstance(value, list):
            _merge_tools(message.setdefault("tool_calls", []), value)
        elif isinstance(value, str) and name != "role" and isinstance(message.get(name), str):
            message[name] += value
        elif value is not None or name not in message:
            message[name] = value


def _merge_tools(calls: list[dict[str, Any]], pieces: list[Any]) -> None:
    for piece in pieces:
        if not isinstance(piece, dict):
            continue
        call = next((one for one in calls if one.get("index") == piece.get("index")), None)
        if call is None:
            calls.append(piece | {"function": dict(piece.get("function") or {})})
            continue
        for name, value in (piece.get("function") or {}).items():
            before = call["function"].get(name)
            call["function"][name] = before + value if name == "arguments" and before and value else value or before
        call["id"] = call.get("id") or piece.get("id")


def _merge_logprobs(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    for name, value in piece.items():
        if isinstance(value, list):
            whole[name] = (whole.get(name) or []) + value
        else:
            whole.setdefault(name, value)
