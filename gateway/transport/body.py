"""One request and its response: what the connection fills in and the caller reads out.

It outlives its connection: when the response has arrived whole, the connection goes on to other requests while the
reader still holds bytes of this one. All that ends it is synchronous, so that no cancellation can cut it in
half. It must not know pools, parsers or sockets; it asks its connection for time, for pauses and for an end.
"""

import asyncio
from collections.abc import AsyncIterator
from math import inf
from typing import Protocol

import httpx

from gateway.alarm import Alarm
from gateway.transport.deadlines import Deadlines
from gateway.transport.errors import DeadlineExceeded, FirstByteTimeout, IdleTimeout

HIGH_WATER = 192 * 1024
"""Bytes waiting for the reader at which the connection stops reading; one more read may come on top."""


class Carrier(Protocol):
    """What an exchange needs of the connection that carries it."""

    loop: asyncio.AbstractEventLoop
    alarm: Alarm

    def close(self) -> None:
        """End the connection now, without a failure for anybody."""

    def pause(self) -> None:
        """Stop reading."""

    def resume(self) -> None:
        """Read on."""


class BodyStream(httpx.AsyncByteStream):
    """The response in the making, and the stream of its body. One reader at a time."""

    __slots__ = (
        "_buffered",
        "_chunks",
        "_deadlines",
        "_late",
        "_late_at",
        "_waiter",
        "carrier",
        "complete",
        "failure",
        "first_byte_at",
        "head_complete",
        "headers",
        "paused",
        "sent_at",
        "stale",
        "status",
        "version",
    )

    def __init__(self, carrier: Carrier, deadlines: Deadlines) -> None:
        self.carrier: Carrier | None = carrier
        self.status = 0
        self.version = "1.1"
        self.headers: list[tuple[bytes, bytes]] = []
        self.head_complete = False
        self.complete = False
        self.failure: BaseException | None = None
        self.stale = False  # lost soon, on a connection used before, with no byte of a response
        self.sent_at = 0.0
        self.first_byte_at: float | None = None
        self._deadlines = deadlines
        self._chunks: list[bytes] = []
        self._buffered = 0
        self.paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._late: type[httpx.TimeoutException] = FirstByteTimeout
        self._late_at = inf

    # What the reader calls.

    async def head(self) -> None:
        """Return when status and headers are here. Raises httpx.TransportError; cancelled, it ends the stream."""
        while not self.head_complete:
            if self.failure is not None:
                raise self.failure
            await self._news()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """All that is here, as one chunk. Raises httpx.TransportError; cancelled, it ends the stream."""
        while True:
            chunks = self._chunks
            if chunks:
                self._chunks = []
                self._buffered = 0
                if self.paused:
                    self._resume()
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
            if self.complete:
                raise StopAsyncIteration
            if self.failure is not None:
                raise self.failure
            self._expect(IdleTimeout, self._deadlines.idle)
            await self._news()

    async def aclose(self) -> None:
        """As `close`; never suspends."""
        self.close()

    def close(self) -> None:
        """Let go. Before the end of the response this closes the connection and frees its place at once."""
        carrier, self.carrier = self.carrier, None
        self._chunks = []
        if carrier is not None:
            carrier.close()
            self.fail(httpx.StreamClosed())

    async def _news(self) -> None:
        if self._waiter is not None:
            raise RuntimeError("somebody else is reading this response")
        assert self.carrier is not None
        waiter = self._waiter = self.carrier.loop.create_future()
        try:
            await waiter
        except BaseException:
            self._waiter = None
            self.close()
            raise

    @property
    def deadline(self) -> float:
        """When all of the response must be here, in the loop's time; infinity for never. May be moved."""
        return self._deadlines.total

    @deadline.setter
    def deadline(self, at: float) -> None:
        self._deadlines.total = at
        if self.carrier is not None:
            self._arm(at if self._waiter is None else min(at, self._late_at))

    # What the connection calls.

    def wake(self) -> None:
        """There is news for the reader."""
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def feed(self, body: bytes) -> None:
        """A piece of the response's body."""
        self._chunks.append(body)
        self._buffered += len(body)
        if self._buffered >= HIGH_WATER and not self.paused and self.carrier is not None:
            self.paused = True
            self.carrier.pause()

    def finish(self) -> None:
        """The response is here, whole."""
        self.complete = True
        self.carrier = None
        self.wake()

    def fail(self, failure: BaseException) -> None:
        """The response will not be whole. What has come of it can still be read, then this is raised."""
        self.failure = failure
        self.carrier = None
        self.wake()

    def late(self, now: float) -> httpx.TimeoutException | None:
        """The alarm rang: which deadline passed, if any did. While nobody waits only the total one counts."""
        total = self._deadlines.total
        if self._waiter is not None and self._late_at <= now and self._late_at < total:
            return self._late("the upstream was silent for too long")
        if total <= now:
            return DeadlineExceeded("the request's deadline passed")
        self._arm(total if self._waiter is None else min(total, self._late_at))
        return None

    # The phases, as the connection sees them.

    def sending(self) -> None:
        """Bytes of the request wait for the peer to take them."""
        if not self.head_complete:
            self._expect(httpx.WriteTimeout, self._deadlines.write)

    def preparing(self) -> None:
        """The peer has taken what there is so far, and the body's source may take its time."""
        if not self.head_complete:
            self._expect(httpx.WriteTimeout, inf)

    def sent(self) -> None:
        """The peer has taken all of the request."""
        if not self.head_complete:
            self._expect(FirstByteTimeout, self._deadlines.first_byte)

    def answering(self) -> None:
        """A part of the head came, and the rest is owed."""
        self._expect(IdleTimeout, self._deadlines.idle)

    def _expect(self, late: type[httpx.TimeoutException], allowance: float) -> None:
        assert self.carrier is not None
        self._late = late
        at = self._late_at = self.carrier.loop.time() + allowance
        total = self._deadlines.total
        self._arm(min(total, at))

    def _arm(self, at: float) -> None:
        assert self.carrier is not None
        if at < inf:
            self.carrier.alarm.set(at)
        else:
            self.carrier.alarm.clear()

    def _resume(self) -> None:
        self.paused = False
        if self.carrier is not None:
            self.carrier.resume()
