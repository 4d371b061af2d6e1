"""Log lines for people: one short line per event, in colour where a person is watching.

Whatever a line holds, it stays one line and moves no cursor: values that callers chose are shown with their control
characters escaped. Must not know how lines are written.
"""

from structlog.typing import EventDict

_RESET = "\x1b[0m"
_DIM = "\x1b[2m"
_COLORS = {"debug": _DIM, "info": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31;1m"}


class Console:
    """The last processor: an event as a line of text."""

    def __init__(self, *, color: bool) -> None:
        self._color = color

    def __call__(self, _logger: object, _method: str, event: EventDict) -> bytes:
        """The line."""
        time = event.pop("timestamp").time().isoformat(timespec="milliseconds")
        level = str(event.pop("level"))
        name = event.pop("event")
        trace = event.pop("trace", ())
        if name == "request":
            level, text = _request(event)
        else:
            text = " ".join([_shown(name), *(f"{key}={_shown(value)}" for key, value in event.items())])
        line = f"{self._in(_DIM, time)} {self._in(_COLORS.get(level, ''), f'{level:<7}')} {text}"
        return "\n    ".join([line, *(_shown(frame) for frame in trace)]).encode("utf-8", "backslashreplace")

    def _in(self, color: str, text: str) -> str:
        return f"{color}{text}{_RESET}" if self._color and color else text


def _request(event: EventDict) -> tuple[str, str]:
    """How bad a request was, and its line: status, kind, model, where it went, how long it took, what it used."""
    status = event["status"]
    level = "error" if status >= 500 else "warning" if status >= 400 or event["end_reason"] != "done" else "info"
    words = [str(status), event["kind"], _shown(event["model"])]
    if event["upstream"]:
        tries = f" x{event['attempts']}" if event["attempts"] > 1 else ""
        words.append(f"-> {event['upstream']}{tries}")
    words.append(f"{event['duration_ms']:.0f} ms")
    if event["ttft_ms"] is not None:
        words.append(f"(first token {event['ttft_ms']:.0f} ms)")
    if event["input_tokens"] is not None:
        guess = "~" if event["usage_estimated"] else ""
        words.append(f"{guess}{event['input_tokens']}+{event['output_tokens']} tokens")
    if event["end_reason"] != "done":
        words.append(event["end_reason"])
    return level, " ".join([*words, f"[{event['key']}]" if event["key"] else "[-]", event["request_id"]])


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if text.isprintable() else ascii(text)
