"""One try at one replica: a request goes out, and a reply comes back, or the one error that says why not.

Commits late: a stream is handed on when its first event with something in it is here, a plain reply when its last byte is,
so that whatever goes wrong before that is still an error with a status, and can be tried elsewhere. What is borrowed is
given back with what came of it, once. Must not know callers, routes or other attempts.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import httpx
import msgspec

from gateway import errors
from gateway.call import Call, Clock, Exchange, Try
from gateway.dialects import Translator
from gateway.fleet import Lease, Timeouts, Upstream
from gateway.flow.waits import waiting
from gateway.outcome import Outcome, Phase, Refusal, judge, of_exception, of_status
from gateway.transport import BodyStream, DeadlineExceeded, Engine, PreparedRequest
from gateway.wire import chat
from gateway.wire.gather import Gathered
from gateway.wire.sse import Event, EventTooLarge, Framer

Fields = list[tuple[bytes, bytes]]

_PASSED = frozenset((b"openai-processing-ms", b"openai-version"))
LARGEST_REPLY = 32 << 20
LARGEST_REFUSAL = 64 << 10
LARGEST_PRELUDE = 256 << 10  # what a stream says before there is anything in it

ABANDONED = errors.CallerLeft("The attempt was given up.")


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


class Until(NamedTuple):
    """Moments of the loop's clock: when the call's time is up, and when the caller's own patience is."""

    total: float
    patience: float

    @classmethod
    def of(cls, timeouts: Timeouts, call: Call, exchange: Exchange) -> "Until":
        """How long an attempt under `timeouts` may take.

        A caller's patience for the first byte is all there is for a plain reply; a stream's ends with its first comment.
        """
        patience = exchange.deadline
        if exchange.first_byte_by < patience:
            pinged = call.stream and exchange.sought_at + timeouts.ping < exchange.first_byte_by
            patience = patience if pinged else exchange.first_byte_by
        return cls(exchange.sought_at + timeouts.total, patience)

    def passed(self) -> errors.GatewayError:
        """Whose time is up."""
        caller = self.patience <= self.total
        return errors.DeadlinePassed() if caller else errors.UpstreamTimeout("The call took too long.")


class Attempt:
    """What one try borrows, and what came of it: `reply`, once it is there. Settling it twice is settling it once."""

    __slots__ = (
        "_clock",
        "_deadline",
        "exchange",
        "lease",
        "phase",
        "reply",
        "response",
        "sent_at",
        "streams",
        "until",
        "upstream",
    )

    def __init__(self, upstream: Upstream, lease: Lease, exchange: Exchange, until: Until, clock: Clock) -> None:
        self.upstream = upstream
        self.lease = lease
        self.exchange = exchange
        self.until = until
        self._clock = clock
        self._deadline = 0.0  # that the transport keeps
        self.response: httpx.Response | None = None
        self.reply: Plain | Stream | None = None
        self.phase: Phase = "head"
        self.sent_at = 0.0
        self.streams = False  # what is asked for, which may not be what the caller wants

    async def run(self, call: Call) -> "Plain | Stream":
        """Try. Raises GatewayError; whatever happens but a stream's beginning, everything is given back."""
        exchange, lease = self.exchange, self.lease
        if exchange.phase != "streaming":
            exchange.phase = "upstream"
        exchange.attempts += 1
        self.sent_at = sent_at = self._clock()
        self.show()
        error: errors.GatewayError | None = ABANDONED
        try:
            reply = self.reply = await self._trying(call)
            error = None
        except httpx.HTTPError as exception:
            error = self.told(exception)
            raise error from exception
        except errors.GatewayError as failure:
            error = failure
            raise
        except asyncio.CancelledError:
            error = blamed(exchange)
            raise
        finally:
            exchange.committed_at = now = self._clock()
            exchange.upstream_seconds += now - sent_at
            if error is None:
                lease.answered(now)
            if not isinstance(self.reply, Stream):
                self.let_go(error)
                if self.response is not None:
                    await _stream_of(self.response).aclose()
        return reply

    @property
    def answer(self) -> "Plain | Stream":
        """The reply of an attempt that has succeeded."""
        if self.reply is None:
            raise RuntimeError("the attempt has no reply")
        return self.reply

    async def discard(self) -> None:
        """Give a reply back unread: another attempt was quicker."""
        await self.settle(ABANDONED)

    def show(self) -> None:
        """This is the attempt that the call's record tells of."""
        exchange, lease = self.exchange, self.lease
        exchange.upstream = self.upstream.name
        exchange.upstream_model = lease.model
        exchange.replica = lease.replica.name
        exchange.sent_at = self.sent_at

    def waiting(self, what: Literal["pool", "connect"]) -> AbstractContextManager[None]:
        """The transport waits before it can send."""
        return waiting(what, self.upstream.name, self.exchange, self._clock)

    async def settle(self, error: errors.GatewayError | None) -> None:
        """Give back the replica and the connection. With the gateway's own engine this awaits nothing."""
        self.let_go(error)
        if self.response is not None:
            await _stream_of(self.response).aclose()

    def let_go(self, error: errors.GatewayError | None = ABANDONED) -> None:
        """Give back the replica, and note what came of the attempt."""
        if self.lease.settle(error, self._clock()):
            outcome = Outcome.SERVED if error is None else judge(error)
            self.exchange.tries += (Try(self.upstream.name, self.lease.replica.name, outcome),)

    def told(self, exception: httpx.HTTPError) -> errors.GatewayError:
        """What an exception means, now: a deadline may have been the upstream's, or the caller's own."""
        # The clock can't tell which: uvloop's timers ring up to half a millisecond early.
        if isinstance(exception, DeadlineExceeded) and self.until.patience <= self._deadline:
            return errors.DeadlinePassed()
        if isinstance(exception, DeadlineExceeded) and self.phase == "stream" and self._deadline < self.until.total:
            return errors.UpstreamTimeout("The upstream fell silent.", code="upstream_idle_timeout")
        return of_exception(exception, self.phase)

    def _trying(self, call: Call) -> Coroutine[Any, Any, "Plain | Stream"]:
        request = self._request(call)
        if isinstance(self.upstream.transport, Engine):  # which keeps the deadline itself
            return self._try(request, call)
        return self._bounded(request, call)

    async def _bounded(self, request: PreparedRequest, call: Call) -> "Plain | Stream":
        """Try, held to the deadline."""
        try:
            async with asyncio.timeout_at(request.extensions["deadline"]):
                return await self._try(request, call)
        except TimeoutError:
            raise DeadlineExceeded("the request's deadline passed") from None

    def _request(self, call: Call) -> PreparedRequest:
        upstream, lease = self.upstream, self.lease
        self.streams = streams = upstream.dialect.streams(call, lease.model)
        destination = lease.replica.endpoint.destination(call.kind, lease.model, stream=streams)
        if destination is None:
            raise errors.CallerError(
                f"This model does not serve {call.kind}.", code="unsupported_endpoint", param="model"
            )
        deadline = min(self.until)
        if call.stream and (first_token := _now() + upstream.timeouts.first_token) < deadline:
            self.phase = "first_event"
            deadline = first_token
        self._deadline = deadline
        return PreparedRequest(
            destination,
            [(b"x-request-id", _numbered(self.exchange))],
            upstream.dialect.encode(call, lease.model),
            {
                "timeout": upstream.stream_timeout if streams else upstream.plain_timeout,
                "deadline": deadline,
                "waits": self,
            },
        )

    async def _try(self, request: PreparedRequest, call: Call) -> "Plain | Stream":
        response = self.response = await self.upstream.transport.handle_async_request(request)
        if not call.stream:
            self.phase = "body"
        if not 200 <= response.status_code < 300:
            raise await _refused(self.upstream, response)
        head = Head.of(response)
        if head.encoded:
            raise errors.UpstreamBroken("The upstream's answer is encoded.", code="upstream_bad_encoding")
        if _is_plain(head.content_type, self.streams):
            return await _plain(self.upstream, response, head.passed)
        stream = Stream(self, response, head.passed, self.upstream.dialect.translator(call, self.lease.model))
        if not call.stream:
            body = await _gathered(stream, call.choices)
            return Plain(body, head.passed, chat.read_chunk(body))
        stream.first = await _first_events(stream)
        self.until = Until(_now() + self.upstream.timeouts.stream, self.exchange.deadline)
        self.outlive(min(self.until))
        return stream

    def outlive(self, at: float) -> bool:
        """Move the deadline to `at`; False if the transport keeps none."""
        if self.response is None or not isinstance(self.response.stream, BodyStream):
            return False
        self.response.stream.deadline = self._deadline = at
        return True

    def begun(self) -> None:
        """There is an event, if one with nothing in it: it is no longer its beginning that is waited for."""
        self.phase = "stream"
        self.outlive(min(_now() + self.upstream.timeouts.idle, *self.until))  # comments are no progress


class Stream:
    """A stream whose first event with something in it is here. Whoever enters it settles it on leaving."""

    __slots__ = ("_attempt", "_feed", "_reads", "_translator", "first", "headers")

    def __init__(
        self, attempt: Attempt, response: httpx.Response, headers: Fields, translator: Translator | None
    ) -> None:
        self._attempt = attempt
        self._reads = aiter(_stream_of(response))
        self._translator = translator
        self._feed = Framer().feed if translator is None else _translating(translator)
        self.headers = headers
        self.first: list[Event] = []

    async def read(self) -> list[Event] | None:
        """The events that the next read completes, perhaps none; None at the end. Raises GatewayError."""
        try:
            return self._feed(await anext(self._reads))
        except StopAsyncIteration:
            translator, self._translator = self._translator, None
            return None if translator is None else translator.end() or None
        except EventTooLarge:
            raise errors.UpstreamBroken(
                "The upstream sent too large an event.", code="upstream_event_too_large"
            ) from None
        except httpx.HTTPError as exception:
            raise self._attempt.told(exception) from exception

    def begun(self) -> None:
        """The first event is here."""
        self._attempt.begun()

    def refusal(self, data: bytes) -> errors.GatewayError:
        """What an event means that tells of an error."""
        return _told_inside(self._attempt.upstream.dialect.refusal(200, data))

    def end_within(self, seconds: float) -> bool:
        """Move the deadline to `seconds` from now; False if the transport keeps none."""
        return self._attempt.outlive(_now() + seconds)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _class: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Give back what the stream holds, read to its end or not."""
        if isinstance(error, errors.GatewayError) or error is None:
            await self._attempt.settle(error)
        else:
            await self._attempt.settle(blamed(self._attempt.exchange))


def blamed(exchange: Exchange) -> errors.GatewayError:
    """What a cancelled attempt is put down to: to the upstream only where its silence was the reason."""
    reason = exchange.interruption
    return reason if isinstance(reason, errors.UpstreamError) else ABANDONED


def _numbered(exchange: Exchange) -> bytes:
    """The call's id, and from the second attempt on its number: an engine may not know yet that the first was given up."""
    request_id = exchange.request_id.encode("ascii")
    return request_id if exchange.attempts <= 1 else b"%b-%d" % (request_id, exchange.attempts)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _stream_of(response: httpx.Response) -> httpx.AsyncByteStream:
    if not isinstance(response.stream, httpx.AsyncByteStream):
        raise TypeError("the transport is not asynchronous")
    return response.stream


def _translating(translator: Translator) -> Callable[[bytes], list[Event]]:
    feed = Framer().feed
    return lambda data: translator.take(feed(data))


def _is_plain(content_type: bytes, streams: bool) -> bool:
    """Whether the answer is JSON, which also an upstream may send that was asked for a stream."""
    if content_type == b"application/json" or (content_type == b"" and not streams):
        return True
    if streams and content_type in (b"text/event-stream", b""):
        return False
    raise errors.UpstreamBroken("The upstream's answer is of the wrong type.", code="upstream_bad_content_type")


async def _refused(upstream: Upstream, response: httpx.Response) -> errors.GatewayError:
    try:
        body = await _read(response, LARGEST_REFUSAL)
    except (httpx.HTTPError, errors.UpstreamBroken):
        body = b""  # the status says enough
    return of_status(response.status_code, upstream.dialect.refusal(response.status_code, body), response.headers)


async def _read(response: httpx.Response, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in _stream_of(response):
        parts.append(part)
        size += len(part)
        if size > limit:
            raise errors.UpstreamBroken("The upstream's answer is too large.", code="upstream_response_too_large")
    return b"".join(parts)


async def _gathered(stream: Stream, choices: int) -> bytes:
    """A whole stream as the one reply that the caller asked for. Raises GatewayError."""
    gathered = Gathered(choices)
    while not gathered.done and (events := await stream.read()) is not None:
        for _, data in events:
            if data and gathered.take(data):
                raise stream.refusal(data)
        if gathered.size > LARGEST_REPLY:
            raise errors.UpstreamBroken("The upstream's answer is too large.", code="upstream_response_too_large")
    if gathered.invalid:
        raise errors.UpstreamBroken("The upstream sent an invalid event.", code="upstream_invalid_event")
    if not gathered.complete:
        raise errors.UpstreamBroken("The upstream ended the stream early.", code="upstream_stream_incomplete")
    return gathered.reply()


async def _plain(upstream: Upstream, response: httpx.Response, headers: Fields) -> Plain:
    body = await _read(response, LARGEST_REPLY)
    try:
        read = chat.read_chunk(body)
    except msgspec.DecodeError:
        raise errors.UpstreamBroken("The upstream's answer is not valid JSON.") from None
    if read.failed:
        raise _told_inside(upstream.dialect.refusal(200, body))
    return Plain(body, headers, read)


def _told_inside(refusal: Refusal) -> errors.GatewayError:
    """An error that was told under status 200: the upstream's own failure, unless its dialect knows better."""
    return of_status(500, refusal, {})


async def _first_events(stream: Stream) -> list[Event]:
    """All up to the first event with something in it. Raises GatewayError if one tells of an error, or if none comes.

    A role alone promises nothing: an engine may send it, and then find that it has no room for the request.
    """
    events: list[Event] = []
    size, begun = 0, False
    while (begun or size <= LARGEST_PRELUDE) and (read := await stream.read()) is not None:
        events += read
        size += sum(len(raw) for raw, _ in read)
        for _, data in read:
            if data:
                begun = True
                stream.begun()
                if _says_something(stream, data):
                    return events
        if begun and size > LARGEST_PRELUDE:
            return events  # however little it says: it is memory that sets the bound
    raise errors.UpstreamBroken("The upstream's stream holds no event.", code="upstream_stream_incomplete")


def _says_something(stream: Stream, data: bytes) -> bool:
    try:
        chunk = chat.read_chunk(data)
    except msgspec.DecodeError:
        if data.strip() == b"[DONE]":
            return True
        raise errors.UpstreamBroken("The upstream sent an invalid event.", code="upstream_invalid_event") from None
    if chunk.failed:
        raise stream.refusal(data)
    begins = bytes(chunk.choices) != b"" and not chat.has_content(chunk.choices)
    return not begins or bool(chat.finished(data))
