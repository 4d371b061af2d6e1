"""The one answer to one caller: begun once, ended once, and honest about how it ends.

Everything that is said to a caller goes through here, so that an error before the first byte is a status and one after
it is an event in the stream. Knows ASGI's `send`; must not know upstreams.
"""

import asyncio
from collections.abc import Iterable

from starlette.types import Send

from gateway.alarm import Alarm
from gateway.call import Clock, Exchange
from gateway.errors import DeadlinePassed, GatewayError, UpstreamTimeout
from gateway.fleet import Timeouts
from gateway.tasks import spawn

Headers = list[tuple[bytes, bytes]]

_PING = b": ping\n\n"
_STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Answer:
    """Status and headers once, then bytes, then an end.

    `started`: a status has been promised. `ended`: nothing may be added. `complete`: the caller's side has taken it all.
    """

    __slots__ = ("_clock", "_exchange", "_send", "complete", "ended", "started", "streaming")

    def __init__(self, send: Send, exchange: Exchange, clock: Clock) -> None:
        self._send = send
        self._exchange = exchange
        self._clock = clock
        self.started = False
        self.streaming = False
        self.ended = False
        self.complete = False

    async def plain(self, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """The whole answer at once, JSON unless `headers` say otherwise."""
        head: Headers = [*headers, *self._own_headers(), (b"content-length", b"%d" % len(body))]
        self._exchange.status = status
        self.started = self.ended = True
        await self._send({"type": "http.response.start", "status": status, "headers": head})
        await self._send({"type": "http.response.body", "body": body})
        self._completed()

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
        self._completed()

    async def fail(self, error: GatewayError) -> None:
        """Say that it failed: as a status if none was promised, else as the stream's last event, without `[DONE]`."""
        if self.ended:
            return
        if self.started:
            self.ended = True
            await self._send({"type": "http.response.body", "body": error.event()})
            self._completed()
            return
        headers = [(name.encode("ascii"), value.encode("latin-1")) for name, value in error.headers.items()]
        await self.plain(error.status, error.body(), [(b"content-type", b"application/json"), *headers])

    def _completed(self) -> None:
        self.complete = True
        self._exchange.ended_at = self._clock()

    def _own_headers(self) -> Headers:
        exchange = self._exchange
        exchange.relayed_at = now = self._clock()
        headers = [(b"x-request-id", exchange.request_id.encode("ascii"))]
        if exchange.upstream:
            headers.append((b"x-gateway-upstream", exchange.upstream.encode("ascii")))
        headers.append((b"x-gateway-attempts", b"%d" % exchange.attempts))
        if exchange.attempts and not self.streaming:
            upstream = exchange.upstream_seconds
            added = max(0.0, now - exchange.started_at - upstream)
            # Whole numbers: to print a float to two digits takes longer than all the rest of this.
            timing = (
                *divmod(int(added * 1e5), 100),
                *divmod(int(upstream * 1e5), 100),
            )
            headers.append((b"server-timing", b"gateway;dur=%d.%02d, upstream;dur=%d.%02d" % timing))
        return headers


class Silence:
    """Watches a stream from the moment that it is asked for, with one timer.

    A caller that hears nothing for `ping` seconds gets a comment, which SDKs skip and proxies count as life; before the
    first event that comment promises the 200. An upstream that sends no event for `idle` seconds is given up, and so is
    a stream that is older than `stream` seconds: neither is helped by the comments that the upstream itself may send.
    While `writing` it is the caller who is waited for, and the listening side who loses patience.
    """

    __slots__ = (
        "_alarm",
        "_answer",
        "_began_at",
        "_event_at",
        "_events",
        "_exchange",
        "_heard_at",
        "_loop",
        "_ping",
        "_timeouts",
        "writing",
    )

    def __init__(self, answer: Answer, exchange: Exchange) -> None:
        self._loop = asyncio.get_running_loop()
        self._answer = answer
        self._exchange = exchange
        self._timeouts = Timeouts()
        self._began_at = self._heard_at = self._loop.time()  # heard by the caller
        self._event_at: float | None = None  # None until the first one, which the transport's deadline bounds
        self._events = 0
        self._ping: asyncio.Task[None] | None = None
        self._alarm = Alarm(self._loop, self._ring)
        self.writing = False

    def under(self, timeouts: Timeouts) -> None:
        """Go by the timeouts of the upstream that is tried now."""
        self._timeouts = timeouts
        self._schedule(self._loop.time())

    def heard(self) -> None:
        """Something was sent on to the caller: an event, if the record has one more of them, or else a comment."""
        self.writing = False
        self._heard_at = self._loop.time()
        if self._exchange.events != self._events:
            self._events = self._exchange.events
            self._event_at = self._heard_at

    def close(self) -> None:
        """Stop watching."""
        self._alarm.close()

    def _ring(self) -> None:
        now = self._loop.time()
        if self.writing:
            self._heard_at = now
            self._event_at = now if self._event_at is not None else None
        if self._event_at is not None and now >= self._event_at + self._timeouts.idle:
            self._exchange.interrupt(UpstreamTimeout("The upstream fell silent.", code="upstream_idle_timeout"))
        elif now >= self._exchange.deadline:
            self._exchange.interrupt(DeadlinePassed())
        elif now >= self._began_at + self._timeouts.stream:
            self._exchange.interrupt(UpstreamTimeout("The stream took too long.", code="upstream_stream_timeout"))
        else:
            if now >= self._heard_at + self._timeouts.ping and not self._ping_waits():
                self._ping = spawn(self._say_ping(), name="ping")
                self._heard_at = now
            self._schedule(now)

    def _schedule(self, now: float) -> None:
        timeouts = self._timeouts
        idle_at = (now if self._event_at is None else self._event_at) + timeouts.idle
        ping_at = max(now, self._heard_at) + timeouts.ping if self._ping_waits() else self._heard_at + timeouts.ping
        self._alarm.set(min(ping_at, idle_at, self._began_at + timeouts.stream, self._exchange.deadline))

    def _ping_waits(self) -> bool:
        """Whether the last comment is still on its way to a caller who does not read."""
        return self._ping is not None and not self._ping.done()

    async def _say_ping(self) -> None:
        if self._answer.ended:
            return
        try:
            await self._answer.start_stream()
            await self._answer.write(_PING)
        except OSError:
            return  # the caller has left, and the call's own task is being told
