"""Cuts a byte stream into Server-Sent Events without losing or changing a byte.

The relay forwards an event when its last byte is here, so the framer must know where events end, whatever the reads
look like: WHATWG HTML 9.2.6 (line ends LF, CR and CRLF, mixed; a blank line ends an event; `data` lines are joined by
LF). It must not know JSON, OpenAI or who reads: text is never decoded here, so no character can be cut in half.
"""

import re

Event = tuple[bytes, bytes | None]
"""The event's bytes as they came, and its data; None where it carries none (a comment, an `id:` alone)."""

# A CR that ends a read ends its line at once; the LF that may follow then belongs to the same line end.
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class EventTooLarge(Exception):
    """An event grew past the limit without coming to its end."""


class Framer:
    """Feed it reads, get whole events. `limit`: bytes that one event may have."""

    __slots__ = ("_buffer", "_limit", "_scanned", "_started")

    def __init__(self, limit: int = 1 << 20) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._scanned = 0
        self._started = False

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes, in order. Raises EventTooLarge."""
        # One whole event in one read is how nearly every token arrives.
        if self._buffer or data[:6] != b"data: " or data[-2:] != b"\n\n" or data.find(b"\n") != len(data) - 2:
            return self._split(data)
        if b"\r" in data or len(data) > self._limit:
            return self._split(data)
        self._started = True
        return [(data, data[6:-2])]

    @property
    def rest(self) -> bytes:
        """What has come of an event whose end has not."""
        return bytes(self._buffer)

    def _split(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        buffer = self._buffer
        buffer += data
        start = 0
        search = max(0, self._scanned - 3)
        while (end := _BLANK_LINE.search(buffer, search)) is not None:
            self._check(end.end() - start)
            events.append(self._event(bytes(buffer[start : end.end()])))
            start = search = end.end()
        del buffer[:start]
        self._check(len(buffer))
        self._scanned = len(buffer)
        return events

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise EventTooLarge

    def _event(self, raw: bytes) -> Event:
        text = raw
        if not self._started:
            self._started = True
            text = raw.removeprefix(_BOM)
        parts = [part for line in _LINE_END.split(text) if (part := _data(line)) is not None]
        return raw, b"\n".join(parts) if parts else None


def _data(line: bytes) -> bytes | None:
    if line.startswith(b"data:"):
        return line[6:] if line[5:6] == b" " else line[5:]
    return b"" if line == b"data" else None
