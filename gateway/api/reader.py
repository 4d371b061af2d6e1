"""Bytes in, requests out: httptools with the size limits of a head, and without its surprises.

The reader knows where in a request the caller is, and how much has been read since something came of it. It tells its
sink of each head, piece of body and end; all that is wrong it raises out of `feed`. It must not know sockets, clocks,
answers or the order of requests.
"""

from typing import Any, Protocol

import httptools

from gateway.api.heads import Fields, body_too_large, check_size, malformed, read_demands, read_target
from gateway.api.limits import Limits
from gateway.errors import HeadTooLarge, UrlTooLong

_FRAMING = frozenset((b"content-length", b"transfer-encoding"))


class Enough(Exception):
    """Raised by a sink that takes no more requests; comes out of `feed`."""


class Sink(Protocol):
    """Who is told."""

    def begin(self, scope: dict[str, Any], *, persistent: bool, expecting: bool) -> None:
        """A head is complete. `scope` has what ASGI wants to know of it; `persistent`: it may be followed by another.

        What is wrong with the body that it announces is raised after this.
        """
        ...

    def on_body(self, data: bytes) -> None:
        """A piece of its body."""
        ...

    def end(self) -> None:
        """Its body is complete."""
        ...


class Reader:
    """One connection's parser. `in_head`: a head has begun and is not complete."""

    def __init__(self, limits: Limits, sink: Sink) -> None:
        self._limits = limits
        self._sink = sink
        self._known_host: bytes | None = None
        self._url = b""
        self._upgrading: Fields = []
        self._replaying = False
        self._shared_read = False  # the read in which this head began held the end of an earlier request
        self._unaccounted = 0  # bytes read since something came of them
        self.in_head = False

        # A closure over one list saves a third of what a method costs, ten times a request. Trailers come here too, and
        # are thrown away with the next head.
        fields: Fields = []

        def on_header(name: bytes, value: bytes) -> None:
            fields.append((name.lower(), value.strip()))

        self._fields = fields
        self.on_header = on_header
        self.on_body = self._on_body
        self._parser: Any = httptools.HttpRequestParser(self)

    def feed(self, data: bytes) -> None:
        """Parse `data`. Raises GatewayError for a request that must be refused, and what the sink raises."""
        self._unaccounted += len(data)
        if not self.in_head:
            self._shared_read = False
        self._parse(data)
        if self._unaccounted > self._limits.head_bytes:
            self._refuse_unaccounted()
        if len(self._url) > self._limits.url_bytes:
            raise UrlTooLong(f"The request's URL is over {self._limits.url_bytes} bytes.")

    def close(self) -> None:
        """Let go of the parser: it and this object hold each other."""
        self._parser = None

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_past_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            raise (error.__context__ or error) from None
        except httptools.HttpParserError:
            raise malformed("The request is not well-formed HTTP/1.1.") from None

    def _refuse_unaccounted(self) -> None:
        if self.in_head:
            raise HeadTooLarge(f"The request's head is over {self._limits.head_bytes} bytes.")
        self._unaccounted = 0
        raise malformed("The request has too much framing.")

    def _read_past_upgrade(self, rest: bytes) -> None:
        # llhttp takes everything after an Upgrade for another protocol. We do not upgrade (RFC 9110 7.8 lets us ignore
        # it), so a fresh parser gets the framing alone. Java's HttpClient offers h2c with its first request.
        lines = [b"%b: %b\r\n" % field for field in self._upgrading if field[0] in _FRAMING]
        self._upgrading = []
        self._parser = httptools.HttpRequestParser(self)
        self._replaying = True
        self._parser.feed_data(b"".join((b"POST / HTTP/1.1\r\n", *lines, b"\r\n")))
        self._parse(rest)

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._url = b""
        self._fields.clear()
        self.in_head = not self._replaying

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._url += url

    def on_headers_complete(self) -> None:
        """Judge the head and hand it on."""
        url, self._url = self._url, b""
        if self._replaying:
            self._replaying = False
            return
        self.in_head = False
        headers = self._fields.copy()
        limits = self._limits
        path, raw_path, query = read_target(url, limits)
        if self._shared_read or self._unaccounted > limits.head_bytes:
            check_size(url, headers, limits)
        self._unaccounted = 0
        parser = self._parser
        if parser.should_upgrade():
            self._upgrading = headers
        version = parser.get_http_version()
        oversized, expecting, self._known_host = read_demands(version, headers, limits, self._known_host)
        scope = {
            "http_version": version,
            "method": parser.get_method().decode("ascii"),
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": headers,
        }
        persistent = version == "1.1" and parser.should_keep_alive()
        self._sink.begin(scope, persistent=persistent, expecting=expecting)
        if oversized:
            raise body_too_large(limits)

    def _on_body(self, data: bytes) -> None:
        self._unaccounted = 0
        self._sink.on_body(data)

    def on_message_complete(self) -> None:
        """End a request; what is left of this read belongs to the next one."""
        if self._upgrading:
            return
        self._unaccounted = 0
        self._shared_read = True
        self._sink.end()
