"""One connection to an upstream: bytes in, parser, bytes out, one exchange at a time.

Everything runs in the loop's callbacks; there is no task, no lock and no stream object, because each of those costs more
than the bytes it moves. The connection decides when it can be used again and tells its owner, at the very moment the
message ends. It must not know how connections are made, how many there are, or who waits for one.
"""

import asyncio
import ssl
from typing import Protocol, cast

import httptools
import httpx

from gateway.alarm import Alarm
from gateway.transport.body import BodyStream
from gateway.transport.deadlines import Deadlines
from gateway.transport.errors import ResponseHeadTooLarge
from gateway.transport.request import Outgoing
from gateway.transport.sender import Sender
from gateway.transport.settings import TransportSettings

SPOKEN = frozenset({"1.0", "1.1"})

STALE_WITHIN = 1.0
"""Seconds after sending within which a lost connection may have been lost before. Later, the upstream was at work."""


class Owner(Protocol):
    """Who lends the connection out."""

    def put_back(self, connection: "Connection") -> None:
        """It is free for another stream."""

    def forget(self, connection: "Connection") -> None:
        """It is gone. Called exactly once."""


class Connection(asyncio.BufferedProtocol):
    """A connection, lent to one exchange at a time.

    `scratch` may be shared by any number of connections: what is read into it is parsed before the next read.
    """

    __slots__ = (
        "_begun",
        "_bodiless",
        "_ended",
        "_fields",
        "_head_bytes",
        "_informational",
        "_keep",
        "_made",
        "_owner",
        "_parser",
        "_quiet_bytes",
        "_scratch",
        "_sender",
        "_settings",
        "_stream",
        "_transport",
        "alarm",
        "closed",
        "expires_at",
        "idle_until",
        "loop",
        "uses",
    )

    _transport: asyncio.Transport
    _sender: Sender

    def __init__(self, owner: Owner, settings: TransportSettings, scratch: memoryview) -> None:
        self.loop = asyncio.get_running_loop()
        self.alarm = Alarm(self.loop, self._ring)
        self.closed = False
        self._made = False
        self.uses = 0
        self.expires_at = self.loop.time() + settings.max_connection_age
        self.idle_until = 0.0
        self._owner = owner
        self._settings = settings
        self._scratch = scratch
        self._parser = httptools.HttpResponseParser(self)
        self._stream: BodyStream | None = None
        self._reset([])

    def _reset(self, fields: list[tuple[bytes, bytes]]) -> None:
        self._fields = fields
        self._bodiless = False
        self._begun = False  # a message has begun and its head is not complete
        self._ended = False  # the response is complete; what comes on top is nobody's
        self._keep = True
        self._head_bytes = 0
        self._quiet_bytes = 0
        self._informational = 0

    # What the pool and the exchange call.

    def begin(self, outgoing: Outgoing, deadlines: Deadlines) -> BodyStream:
        """Send a request. The exchange has the connection until its response is complete or given up."""
        stream = BodyStream(self, deadlines)
        if self.closed:
            stream.fail(httpx.RemoteProtocolError("the upstream closed the connection at once"))
            return stream
        self.uses += 1
        self._stream = stream
        self._reset(stream.headers)
        self._bodiless = outgoing.bodiless
        self._keep = not outgoing.close
        stream.sent_at = self.loop.time()
        self._sender.send(outgoing, stream)
        return stream

    @property
    def usable(self) -> bool:
        """Open, as far as one can know."""
        return not (self.closed or self._transport.is_closing())

    def close(self) -> None:
        """End the connection now; an exchange that still has it is told nothing."""
        self._end(None)

    def fail(self, failure: Exception) -> None:
        """End the connection now, and its exchange with this failure."""
        self._end(failure)

    def pause(self) -> None:
        """Stop reading."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bytes can flow."""
        self._transport = cast("asyncio.Transport", transport)
        self._sender = Sender(self._transport)
        self._made = True
        # The transport's default lets 64 KiB pass unnoticed; with these marks "not blocked" means "sent".
        self._transport.set_write_buffer_limits(high=1, low=0)

    def pause_writing(self) -> None:
        """The peer is not taking what was written."""
        self._sender.block()

    def resume_writing(self) -> None:
        """The peer has taken all of it."""
        self._sender.advance()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # one size does for all
        """Where to read to."""
        return self._scratch

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come."""
        stream = self._stream
        if stream is None:
            self._end(None)  # nobody asked for anything: whatever follows here must never meet a request
            return
        if not stream.head_complete:
            self._head_bytes += nbytes
        try:
            self._parser.feed_data(self._scratch[:nbytes])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._ended:
                self._end(_violation(error))
                return
            self._keep = False
        if self._ended:
            self._finish(stream)
        elif stream.head_complete and self._quiet_bytes < self._settings.max_header_bytes:
            self._quiet_bytes += nbytes
            stream.wake()
        else:
            self._await_head(stream)

    def _await_head(self, stream: BodyStream) -> None:
        if stream.head_complete or self._head_bytes > self._settings.max_header_bytes:
            self._end(ResponseHeadTooLarge("the response's head, or its trailers, are too large"))
        elif self._begun:
            stream.answering()

    def eof_received(self) -> None:
        """The peer will send no more: the end of a body that has no other end, a failure of any other."""
        stream = self._stream
        if stream is not None and stream.head_complete and _ends_with_connection(stream):
            self._keep = False
            self._finish(stream)
        else:
            self._lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is closed."""
        self._lost(exc)
        del self._parser  # breaks the cycle of references

    # What the parser calls.

    def on_message_begin(self) -> None:
        """The first byte of a message."""
        if self._ended:
            self._keep = False
        else:
            self._begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, or a trailer."""
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """The empty line."""
        stream = self._stream
        if self._ended or stream is None:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._inform(status)
            return
        version = self._parser.get_http_version()
        self._vet(version)
        self._fields = []  # trailers go there, and nowhere
        stream.status = status
        stream.version = version
        stream.first_byte_at = self.loop.time()
        stream.head_complete = True
        if version == "1.0":
            self._keep = False
        if self._bodiless:
            self._ended = True
            self._keep = False

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self._ended or self._stream is None:
            self._keep = False
            return
        self._quiet_bytes = 0
        self._stream.feed(body)

    def on_message_complete(self) -> None:
        """The end of a message."""
        if self._ended or self._stream is None:
            return
        if self._stream.head_complete:
            self._ended = True
            self._keep = self._keep and self._parser.should_keep_alive()
        else:
            self._begun = False  # it was informational

    def _inform(self, status: int) -> None:
        self._informational += 1
        if self._informational > self._settings.max_informational:
            raise httpx.RemoteProtocolError("too many informational responses")
        if status < 100 or status == 101:
            raise httpx.RemoteProtocolError("a status that nobody asked for")
        self._fields.clear()

    def _vet(self, version: str) -> None:
        """Refuse what the parser lets through and we do not want."""
        if version not in SPOKEN:
            raise httpx.RemoteProtocolError("the upstream does not speak HTTP/1.1")
        fields, settings = self._fields, self._settings
        for name, value in fields:
            if len(name) == 17 and name.lower() == b"transfer-encoding" and value.lower() != b"chunked":
                raise httpx.RemoteProtocolError("a transfer encoding that nobody asked for")
        if len(fields) > settings.max_header_fields:
            raise ResponseHeadTooLarge("the response has too many header fields")
        # What has come is an upper bound of the head, and seldom above the limit: only then is it worth counting.
        if self._head_bytes > settings.max_header_bytes:
            size = sum([len(name) + len(value) + 4 for name, value in fields])
            if size > settings.max_header_bytes:
                raise ResponseHeadTooLarge("the response's head is too large")

    # How an exchange, or the connection, ends.

    def _finish(self, stream: BodyStream) -> None:
        self.alarm.clear()
        self._stream = None
        if stream.paused:
            self.resume()
        if self._keep and not self._sender.busy and self.usable:
            self._owner.put_back(self)
        else:
            self._end(None)
        stream.finish()

    def _ring(self) -> None:
        stream = self._stream
        if stream is not None and (failure := stream.late(self.loop.time())) is not None:
            self._end(failure)

    def _lost(self, exc: Exception | None) -> None:
        stream = self._stream
        if stream is None:
            self._end(None)
            return
        since = self.loop.time() - stream.sent_at
        stream.stale = self.uses > 1 and self._head_bytes == 0 and since < STALE_WITHIN
        self._end(_loss(exc, self._sender.busy, self._head_bytes))

    def _end(self, failure: Exception | None) -> None:
        if self.closed:
            return
        self.closed = True
        self.alarm.close()
        if self._made:
            self._sender.stop()
            self._transport.abort()
        stream, self._stream = self._stream, None
        self._owner.forget(self)
        if stream is not None and failure is not None:
            stream.fail(failure)


def _ends_with_connection(stream: BodyStream) -> bool:
    return not any(name.lower() in {b"content-length", b"transfer-encoding"} for name, _ in stream.headers)


def _violation(error: Exception) -> Exception:
    """What the parser found, or what we raised while it called us."""
    ours = error.__context__
    return ours if isinstance(ours, httpx.TransportError) else httpx.RemoteProtocolError(str(error) or "not HTTP/1.1")


def _loss(exc: Exception | None, sending: bool, received: int) -> Exception:
    if isinstance(exc, ssl.SSLError):
        return httpx.ReadError("the TLS connection broke")
    if exc is not None:
        return httpx.WriteError("the connection broke") if sending else httpx.ReadError("the connection was reset")
    if received:
        return httpx.RemoteProtocolError("the upstream closed the connection before the end of its response")
    return httpx.RemoteProtocolError("the upstream closed the connection without a response")
