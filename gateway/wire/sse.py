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

    __slots__ = ("_buffer", "_has_cr", "_limit", "_scanned", "_started", "_too_large")

    def __init__(self, limit: int = 1 << 20) -> None:
        self._limit = limit
        self._buffer = bytearray()  # of an event whose end has not come
        self._scanned = 0
        self._started = False
        self._has_cr = False
        self._too_large = False

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes, in order. Raises EventTooLarge, once what came before it is delivered."""
        # One whole event in one read is how nearly every token arrives.
        if self._buffer or data[:6] != b"data: " or data.find(b"\n") != len(data) - 2 or data[-1:] != b"\n":
            return self._split(data)
        if self._has_cr or data.find(b"\r") >= 0 or len(data) > self._limit:
            return self._split(data)
        self._started = True
        return [(data, data[6:-2])]

    def _split(self, data: bytes) -> list[Event]:
        buffer = self._buffer
        text: bytes | bytearray = data
        if buffer:
            buffer += data
            text = buffer
        events: list[Event] = []
        start = 0
        for end in self._ends(text, data.find(b"\r") >= 0):
            if end - start > self._limit:
                self._too_large = True
                break
            events.append(self._event(bytes(text[start:end])))
            start = end
        if text is data:
            buffer += data[start:]
        elif start:
            del buffer[:start]
        self._scanned = len(buffer)
        if self._too_large or self._scanned > self._limit:
            self._too_large = True
            if not events:
                raise EventTooLarge
        return events

    def _ends(self, text: bytes | bytearray, has_cr: bool) -> list[int]:
        """Where the events end that end in what has not been looked at."""
        if has_cr:
            self._has_cr = True
        search = self._scanned - 3 if self._scanned > 3 else 0
        if self._has_cr:
            return [blank_line.end() for blank_line in _BLANK_LINE.finditer(text, search)]
        ends: list[int] = []
        while (found := text.find(b"\n\n", search)) >= 0:
            search = found + 2
            ends.append(search)
        return ends

    def _event(self, raw: bytes) -> Event:
        text = raw
        if not self._started:
            self._started = True
            text = raw.removeprefix(_BOM)
        if text[:6] == b"data: " and text.find(b"\n") == len(text) - 2 and not self._has_cr:
            return raw, text[6:-2]
        parts = [part for line in _LINE_END.split(text) if (part := _data(line)) is not None]
        return raw, b"\n".join(parts) if parts else None


def _data(line: bytes) -> bytes | None:
    if line.startswith(b"data:"):
        return line[6:] if line[5:6] == b" " else line[5:]
    return b"" if line == b"data" else None
