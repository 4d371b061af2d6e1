"""The one answer to one caller: begun once, ended once, and honest about how it ends.

Everything that is said to a caller goes through here, so that an error before the first byte is a status and one after
it is an event in the stream. Knows ASGI's `send`; must not know upstreams.
"""

import asyncio
from collections.abc import Iterable

from starlette.types import Send

from gateway.alarm import Alarm
from gateway.call import Clock, Exchange
from gateway.errors import GatewayError, UpstreamTimeout
from gateway.tasks import spawn

Headers = list[tuple[bytes, bytes]]

_PING = b": ping\n\n"
_STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Answer:
    """Status and headers once, then bytes, then an end. `started`: a status has been promised."""

    __slots__ = ("_clock", "_exchange", "_send", "ended", "started", "streaming")

    def __init__(self, send: Send, exchange: Exchange, clock: Clock) -> None:
        self._send = send
        self._exchange = exchange
        self._clock = clock
        self.started = False
        self.streaming = False
        self.ended = False

    async def plain(self, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """The whole answer at once, JSON unless `headers` say otherwise."""
        head: Headers = [*headers, *self._own_headers(), (b"content-length", b"%d" % len(body))]
        self._exchange.status = status
        self.started = self.ended = True
        await self._send({"type": "http.response.start", "status": status, "headers": head})
        await self._send({"type": "http.response.body", "body": body})

    async def start_stream(self, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Promise a stream. Nothing is written before its first bytes are."""
        if self.started:
            return
        self.started = self.streaming = True
        self._exchange.status = 200
        self._exchange.phase = "streaming"
        head: Headers = [*_STREAM_HEADERS, *headers, *self._own_headers()]
        await self._send({"type": "http.response.start", "status": 200, "headers": head})

    async def write(self, data: bytes) -> None:
        """Bytes of the stream, sent on now; waits where the caller reads more slowly than they come."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """The stream is complete."""
        self.ended = True
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, error: GatewayError) -> None:
        """Say that it failed: as a status if none was promised, else as the stream's last event, without `[DONE]`."""
        if self.ended:
            return
        if self.started:
            self.ended = True
            await self._send({"type": "http.response.body", "body": error.event()})
            return
        headers = [(name.encode("ascii"), value.encode("latin-1")) for name, value in error.headers.items()]
        await self.plain(error.status, error.body(), [(b"content-type", b"application/json"), *headers])

    def _own_headers(self) -> Headers:
        exchange = self._exchange
        exchange.relayed_at = now = self._clock()
        headers = [(b"x-request-id", exchange.request_id.encode("ascii"))]
        if exchange.attempts:
            headers.append((b"x-gateway-upstream", exchange.upstream.encode("ascii")))
            headers.append((b"x-gateway-attempts", b"%d" % exchange.attempts))
        if exchange.attempts and not self.streaming:
            upstream = exchange.upstream_seconds
            added = now - exchange.started_at - upstream
            timing = f"gateway;dur={added * 1000:.2f}, upstream;dur={upstream * 1000:.2f}"
            headers.append((b"server-timing", timing.encode("ascii")))
        return headers


class Silence:
    """Watches a stream from the moment that it is asked for, with one timer.

    A caller that hears nothing for `ping` seconds gets a comment, which SDKs skip and proxies count as life; before the
    first event that comment promises the 200. An upstream that sends no event for `idle` seconds is given up, and so is
    a stream that is older than `stream` seconds: neither is helped by the comments that the upstream itself may send.
    """

    __slots__ = (
        "_alarm",
        "_answer",
        "_events",
        "_exchange",
        "_idle",
        "_loop",
        "_ping",
        "_stream_ends",
        "event_at",
        "heard_at",
    )

    def __init__(self, answer: Answer, exchange: Exchange, *, ping: float, idle: float, stream: float) -> None:
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._answer = answer
        self._exchange = exchange
        self._ping = ping
        self._idle = idle
        self._stream_ends = now + stream
        self._events = 0
        self.heard_at = now  # by the caller
        self.event_at: float | None = None  # by us; None until the first one, which the transport's deadline bounds
        self._alarm = Alarm(self._loop, self._ring)
        self._alarm.set(now + min(ping, idle, stream))

    def heard(self) -> None:
        """Something was sent on to the caller: an event, if the record has one more of them, or else a comment."""
        self.heard_at = self._loop.time()
        if self._exchange.events != self._events:
            self._events = self._exchange.events
            self.event_at = self.heard_at

    def close(self) -> None:
        """Stop watching."""
        self._alarm.close()

    def _ring(self) -> None:
        now = self._loop.time()
        if self.event_at is not None and now >= self.event_at + self._idle:
            self._exchange.interrupt(UpstreamTimeout("The upstream fell silent.", code="upstream_idle_timeout"))
            return
        if now >= self._stream_ends:
            self._exchange.interrupt(UpstreamTimeout("The stream took too long.", code="upstream_stream_timeout"))
            return
        if now >= self.heard_at + self._ping:
            self.heard_at = now
            spawn(self._say_ping(), name="ping")
        idle_at = now + self._idle if self.event_at is None else self.event_at + self._idle
        self._alarm.set(min(self.heard_at + self._ping, idle_at, self._stream_ends))

    async def _say_ping(self) -> None:
        if self._answer.ended:
            return
        try:
            await self._answer.start_stream()
            await self._answer.write(_PING)
        except OSError:
            return  # the caller has left, and the call's own task is being told
