"""Takes a Call to an upstream and comes back with a Reply, or with the one error that says why not.

Commits late: a stream is handed on when its first event is here, a plain reply when its last byte is, so that whatever
goes wrong before that is still an error with a status (and can be tried elsewhere). Must not know callers or ASGI.
"""

import asyncio
import random
from collections.abc import Callable
from typing import NamedTuple

import httpx
import msgspec

from gateway import errors
from gateway.call import Call, Clock, Exchange
from gateway.fleet import Lease, Route, Timeouts, Upstream
from gateway.outcome import Phase, Refusal, of_exception, of_status
from gateway.transport import BodyStream, DeadlineExceeded, Engine, PreparedRequest
from gateway.wire import chat
from gateway.wire.sse import Event, EventTooLarge, Framer

Fields = list[tuple[bytes, bytes]]

_PASSED = frozenset((b"openai-processing-ms", b"openai-version"))
LARGEST_REPLY = 32 << 20
LARGEST_REFUSAL = 64 << 10
LARGEST_PRELUDE = 256 << 10  # comments before a stream's first event


class Plain(NamedTuple):
    """A whole reply, verified to be JSON. `headers`: what of the upstream's the caller may see."""

    body: bytes
    headers: Fields
    read: chat.Chunk


class Head(NamedTuple):
    """What is read of a response's headers, in one pass: looking them up one by one costs more than all the rest."""

    content_type: bytes  # without its parameters, in lower case
    encoded: bool
    passed: Fields  # to the caller: the upstream's limits and its own time, nothing that tells of the account

    @classmethod
    def of(cls, response: httpx.Response) -> "Head":
        """Read a response's headers."""
        content_type, encoded = b"", False
        passed: Fields = []
        for given, value in response.headers.raw:
            name = given.lower()
            if name == b"content-type":
                content_type = value.partition(b";")[0].strip().lower()
            elif name == b"content-encoding":
                encoded = value.lower() != b"identity"
            elif name.startswith(b"x-ratelimit-") or name in _PASSED:
                passed.append((name, value))
        return cls(content_type, encoded, passed)


class Attempt:
    """One try at one replica, and what it borrows. Settling it twice is settling it once.

    `kept`: the reply is a stream that goes on using what was borrowed; whoever reads it settles.
    """

    __slots__ = ("kept", "lease", "phase", "response", "upstream")

    def __init__(self, upstream: Upstream, lease: Lease) -> None:
        self.upstream = upstream
        self.lease = lease
        self.response: httpx.Response | None = None
        self.phase: Phase = "head"
        self.kept = False

    async def settle(self) -> None:
        """Let go of the replica and of the connection. With the gateway's own engine this awaits nothing."""
        self.lease.settle()
        if self.response is not None:
            await _stream_of(self.response).aclose()


class Stream:
    """A stream whose first event is here."""

    __slots__ = ("_attempt", "_framer", "_reads", "first", "headers")

    def __init__(self, attempt: Attempt, response: httpx.Response, headers: Fields) -> None:
        self._attempt = attempt
        self._reads = aiter(_stream_of(response))
        self._framer = Framer()
        self.headers = headers
        self.first: list[Event] = []

    async def read(self) -> list[Event] | None:
        """The events that the next read completes, perhaps none; None at the end. Raises GatewayError."""
        try:
            return self._framer.feed(await anext(self._reads))
        except StopAsyncIteration:
            return None
        except EventTooLarge:
            raise errors.UpstreamBroken(
                "The upstream sent too large an event.", code="upstream_event_too_large"
            ) from None
        except httpx.HTTPError as exception:
            raise of_exception(exception, self._attempt.phase) from exception

    def refusal(self, data: bytes) -> errors.GatewayError:
        """What an event means that tells of an error."""
        return _told(self._attempt.upstream.dialect.refusal(data))

    def outlive(self, seconds: float) -> bool:
        """Move the deadline, which was the first event's, to `seconds` from now; False if the transport keeps none."""
        response = self._attempt.response
        if response is None or not isinstance(response.stream, BodyStream):
            return False
        response.stream.deadline = asyncio.get_running_loop().time() + seconds
        return True

    async def settle(self) -> None:
        """Give back what the stream holds, read to its end or not."""
        await self._attempt.settle()


def _stream_of(response: httpx.Response) -> httpx.AsyncByteStream:
    if not isinstance(response.stream, httpx.AsyncByteStream):
        raise TypeError("the transport is not asynchronous")
    return response.stream


class Dispatch:
    """Sends calls to upstreams. `rng` and `clock` are arguments, so that tests decide what chance and time do."""

    def __init__(self, rng: random.Random, clock: Clock) -> None:
        self._rng = rng
        self._clock = clock

    async def __call__(
        self, call: Call, route: Route, exchange: Exchange, watched_by: Callable[[Timeouts], None] | None = None
    ) -> Plain | Stream:
        """The reply to `call` from one of the route's targets. Raises GatewayError.

        `watched_by` is told the timeouts of the upstream that is tried.
        """
        target = route.choose(self._rng)
        if watched_by is not None:
            watched_by(target.upstream.timeouts)
        attempt = Attempt(target.upstream, target.upstream.lease(self._rng))
        if call.stream and target.upstream.timeouts.first_token < target.upstream.timeouts.total:
            attempt.phase = "first_event"
        exchange.phase = "upstream"
        exchange.attempts += 1
        exchange.upstream = target.upstream.name
        exchange.upstream_model = target.model or call.model
        exchange.replica = attempt.lease.replica.name
        exchange.sent_at = self._clock()
        try:
            return await self._bounded(call, attempt, exchange)
        except httpx.HTTPError as exception:
            raise of_exception(exception, attempt.phase) from exception
        finally:
            exchange.committed_at = self._clock()
            exchange.upstream_seconds += exchange.committed_at - exchange.sent_at
            if not attempt.kept:
                await attempt.settle()

    async def _bounded(self, call: Call, attempt: Attempt, exchange: Exchange) -> Plain | Stream:
        """Try, with a deadline that the gateway's own engine keeps, and any other transport is held to."""
        request = _request(call, attempt, exchange)
        if isinstance(attempt.upstream.transport, Engine):
            return await self._try(request, call, attempt)
        try:
            async with asyncio.timeout_at(request.extensions["deadline"]):
                return await self._try(request, call, attempt)
        except TimeoutError:
            raise DeadlineExceeded("the request's deadline passed") from None

    async def _try(self, request: PreparedRequest, call: Call, attempt: Attempt) -> Plain | Stream:
        response = attempt.response = await attempt.upstream.transport.handle_async_request(request)
        if not call.stream:
            attempt.phase = "body"
        if not 200 <= response.status_code < 300:
            raise await _refused(attempt.upstream, response)
        head = Head.of(response)
        if head.encoded:
            raise errors.UpstreamBroken("The upstream's answer is encoded.", code="upstream_bad_encoding")
        if _is_plain(head.content_type, call):
            return await _plain(attempt.upstream, response, head.passed)
        stream = Stream(attempt, response, head.passed)
        stream.first = await _first_event(stream)
        stream.outlive(attempt.upstream.timeouts.stream)
        attempt.phase = "stream"
        attempt.kept = True
        return stream


def _is_plain(content_type: bytes, call: Call) -> bool:
    """Whether the answer is JSON, which also an upstream may send that was asked for a stream."""
    if content_type == b"application/json" or (content_type == b"" and not call.stream):
        return True
    if call.stream and content_type in (b"text/event-stream", b""):
        return False
    raise errors.UpstreamBroken("The upstream's answer is of the wrong type.", code="upstream_bad_content_type")


def _request(call: Call, attempt: Attempt, exchange: Exchange) -> PreparedRequest:
    upstream = attempt.upstream
    timeouts = upstream.timeouts
    # A stream may outlive `total`, which for it ends at the first event.
    allowed = min(timeouts.total, timeouts.first_token) if call.stream else timeouts.total
    return PreparedRequest(
        attempt.lease.replica.destination(call.kind, stream=call.stream),
        [(b"x-request-id", exchange.request_id.encode("ascii"))],
        upstream.dialect.encode(call, exchange.upstream_model),
        {
            "timeout": upstream.stream_timeout if call.stream else upstream.plain_timeout,
            "deadline": asyncio.get_running_loop().time() + allowed,
        },
    )


async def _refused(upstream: Upstream, response: httpx.Response) -> errors.GatewayError:
    try:
        body = await _read(response, LARGEST_REFUSAL)
    except (httpx.HTTPError, errors.UpstreamBroken):
        body = b""  # the status says enough
    return of_status(response.status_code, upstream.dialect.refusal(body), response.headers)


async def _read(response: httpx.Response, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in _stream_of(response):
        parts.append(part)
        size += len(part)
        if size > limit:
            raise errors.UpstreamBroken("The upstream's answer is too large.", code="upstream_response_too_large")
    return b"".join(parts)


async def _plain(upstream: Upstream, response: httpx.Response, headers: Fields) -> Plain:
    body = await _read(response, LARGEST_REPLY)
    try:
        read = chat.read_chunk(body)
    except msgspec.DecodeError:
        raise errors.UpstreamBroken("The upstream's answer is not valid JSON.") from None
    if read.failed:
        raise _told(upstream.dialect.refusal(body))
    return Plain(body, headers, read)


def _told(refusal: Refusal) -> errors.GatewayError:
    """An error that was told under status 200: its code may be the status that it should have had."""
    code = refusal.code or ""
    status = int(code) if code.isdecimal() and 400 <= int(code) < 600 else 500
    return of_status(status, refusal, {})


async def _first_event(stream: Stream) -> list[Event]:
    """All up to the first event with data. Raises GatewayError if that one tells of an error, or if none comes."""
    events: list[Event] = []
    size = 0
    while size <= LARGEST_PRELUDE and (read := await stream.read()) is not None:
        events += read
        size += sum(len(raw) for raw, _ in read)
        for _, data in read:
            if data:
                _refuse_failure(stream, data)
                return events
    raise errors.UpstreamBroken("The upstream's stream holds no event.", code="upstream_stream_incomplete")


def _refuse_failure(stream: Stream, data: bytes) -> None:
    try:
        failed = chat.read_chunk(data).failed
    except msgspec.DecodeError:
        return  # the relay says what is wrong with it, or it is [DONE]
    if failed:
        raise stream.refusal(data)
