"""What a call's spans are: one for the request, and under it one for each attempt, made when the call has ended.

Until then an attempt costs an id, two moments and what came of it; nothing is done per event. Spans hold names from the
config, words from closed lists, numbers and ids, and never what was asked or answered. What is not sampled is told to
upstreams as such, and to nobody else. Must not know OpenTelemetry's SDK: where spans go is an argument.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from gateway.call import Aim, End, Exchange
from gateway.observe import semconv
from gateway.outcome import Outcome
from gateway.wire.tracecontext import RANDOM, SAMPLED, Context, Fields, read

Attributes = dict[str, str | int | float | bool]
Finish = Callable[[Exchange], None]
Wall = Callable[[], int]

_LONGEST_NAME = 200  # behind a pattern it is the caller's
_UNSETTLED = End(None, Outcome.ABANDONED, "caller_left", 0)
_NOBODYS_FAULT = (Outcome.SERVED, Outcome.ABANDONED)


class Span(NamedTuple):
    """A span that has ended. `parent`: the span above it, if there is one. `server`: it is the request's, not an attempt's.

    `start`, `end`: nanoseconds since 1970. `failed`: its status is an error.
    """

    name: str
    context: Context
    parent: Context | None
    server: bool
    start: int
    end: int
    attributes: Attributes
    failed: bool


Sink = Callable[[Sequence[Span]], None]


class AttemptSpan:
    """One attempt, from its beginning to its end."""

    __slots__ = ("aim", "began_at", "context", "end", "ended_at")

    def __init__(self, context: Context, began_at: float, aim: Aim) -> None:
        self.context = context
        self.began_at = began_at
        self.aim = aim
        self.ended_at: float | None = None
        self.end = _UNSETTLED

    @property
    def fields(self) -> Fields:
        """The headers that make it the parent of what its upstream traces."""
        return self.context.fields

    def ended(self, now: float, end: End) -> None:
        """What came of it."""
        self.ended_at, self.end = now, end


class CallTrace:
    """One call, from its head to its end. `method`, `route`: of the request, as the conventions want them."""

    __slots__ = ("_rng", "attempts", "began", "context", "method", "parent", "route")

    def __init__(self, context: Context, parent: Context | None, began: int, rng: random.Random) -> None:
        self.context = context
        self.parent = parent
        self.began = began  # nanoseconds since 1970
        self.attempts: list[AttemptSpan] = []
        self.method = self.route = ""
        self._rng = rng

    def attempt(self, now: float, aim: Aim) -> AttemptSpan:
        """An attempt begins."""
        span = AttemptSpan(self.context._replace(span_id=_id(self._rng, 64)), now, aim)
        self.attempts.append(span)
        return span


class Traces:
    """Makes the spans of all calls, and hands those that are sampled to `sink`, which must not wait.

    A caller that has decided on sampling is followed; of all others `ratio`, 0 to 1, is sampled, by the trace's id and so
    alike wherever that is asked. `wall`: nanoseconds since 1970.
    """

    def __init__(self, sink: Sink, ratio: float, rng: random.Random, wall: Wall) -> None:
        self._sink = sink
        self._bound = round(ratio * (1 << 64))
        self._rng = rng
        self._wall = wall

    def begin(self, exchange: Exchange, headers: Iterable[tuple[bytes, bytes]], method: str, route: str | None) -> None:
        """A request has come. `route`: the path that it goes by, with its variables as `{name}`; None if there is none."""
        found = read(headers)
        parent = None if found is None else found[1]
        trace = CallTrace(self._context(parent), parent, self._wall(), self._rng)
        trace.method = method if method in semconv.METHODS else semconv.OTHER
        trace.route = route or ""
        exchange.trace = trace

    def _context(self, parent: Context | None) -> Context:
        span_id = _id(self._rng, 64)
        if parent is not None:
            return parent._replace(span_id=span_id)
        trace_id = _id(self._rng, 128)
        sampled = SAMPLED if trace_id & ((1 << 64) - 1) < self._bound else 0
        return Context(trace_id, span_id, RANDOM | sampled)

    def after(self, finish: Finish) -> Finish:
        """`finish`, and then the spans: by then the record is complete."""

        def both(exchange: Exchange) -> None:
            finish(exchange)
            self.finish(exchange)

        return both

    def finish(self, exchange: Exchange) -> None:
        """A call has ended."""
        trace = exchange.trace
        if isinstance(trace, CallTrace) and trace.context.sampled:
            self._sink([*_attempts(trace, exchange), _request(trace, exchange)])


def _id(rng: random.Random, bits: int) -> int:
    """One that is not zero, which means that there is none."""
    return rng.getrandbits(bits) or 1


def _at(trace: CallTrace, exchange: Exchange, moment: float) -> int:
    return trace.began + round((moment - exchange.started_at) * 1e9)


def _request(trace: CallTrace, exchange: Exchange) -> Span:
    attributes: Attributes = {
        semconv.HTTP_REQUEST_METHOD: trace.method,
        semconv.URL_SCHEME: "http",
        semconv.HTTP_STATUS: exchange.status,
        semconv.REQUEST_ID: exchange.request_id,
        semconv.OUTCOME: str(exchange.outcome),
        semconv.END_REASON: exchange.end_reason,
        semconv.ATTEMPTS: exchange.attempts,
    }
    named = {
        semconv.HTTP_ROUTE: trace.route,
        semconv.URL_PATH: "" if "{" in trace.route else trace.route,  # what else a path holds is the caller's
        semconv.KEY_NAME: exchange.key_name,
        semconv.MODEL: exchange.model if exchange.model != "unknown" else "",
        semconv.UPSTREAM: exchange.upstream,
        semconv.GAVE_UP: exchange.gave_up,
        semconv.HEDGE: exchange.hedge,
    }
    attributes |= {name: value for name, value in named.items() if value}
    if (seconds := exchange.time_to_first_token) is not None:
        attributes[semconv.TIME_TO_FIRST_TOKEN] = seconds
    wrong = exchange.outcome not in (*_NOBODYS_FAULT, Outcome.REJECTED)
    failed = exchange.status >= 500 or (wrong and exchange.status < 400)
    if failed:
        attributes[semconv.ERROR_TYPE] = exchange.end_reason
    method = "HTTP" if trace.method == semconv.OTHER else trace.method
    name = f"{method} {trace.route}" if trace.route else method
    end = _at(trace, exchange, exchange.ended_at)
    return Span(name, trace.context, trace.parent, True, trace.began, end, attributes, failed)


def _attempts(trace: CallTrace, exchange: Exchange) -> Iterable[Span]:
    served = _served(trace)
    for number, attempt in enumerate(trace.attempts, 1):
        attributes = _attempt_attributes(attempt, number, exchange)
        if attempt is served:
            attributes |= _usage(exchange)
        failed = attempt.end.outcome not in _NOBODYS_FAULT
        if failed:
            attributes[semconv.ERROR_TYPE] = attempt.end.reason
        yield Span(
            f"{semconv.OPERATIONS.get(exchange.kind, exchange.kind)} {_model(attempt, exchange)}",
            attempt.context,
            trace.context,
            False,
            _at(trace, exchange, attempt.began_at),
            _at(trace, exchange, min(attempt.ended_at or exchange.ended_at, exchange.ended_at)),
            attributes,
            failed,
        )


def _attempt_attributes(attempt: AttemptSpan, number: int, exchange: Exchange) -> Attributes:
    aim = attempt.aim
    attributes: Attributes = {
        semconv.OPERATION: semconv.OPERATIONS.get(exchange.kind, exchange.kind),
        semconv.PROVIDER: aim.provider,
        semconv.REQUEST_MODEL: aim.model[:_LONGEST_NAME],
        semconv.SERVER_ADDRESS: aim.host,
        semconv.SERVER_PORT: aim.port,
        semconv.UPSTREAM: aim.upstream,
        semconv.ATTEMPT: number,
        semconv.OUTCOME: str(attempt.end.outcome),
        semconv.END_REASON: attempt.end.reason,
    }
    if aim.replica:
        attributes[semconv.REPLICA] = aim.replica
    if attempt.end.status:
        attributes[semconv.HTTP_STATUS] = attempt.end.status
    if number > 1:
        attributes[semconv.HTTP_RESEND_COUNT] = number - 1
    if exchange.stream:
        attributes[semconv.REQUEST_STREAM] = True
        if attempt.end.answered_at is not None:
            attributes[semconv.TIME_TO_FIRST_CHUNK] = attempt.end.answered_at - attempt.began_at
    return attributes


def _model(attempt: AttemptSpan, exchange: Exchange) -> str:
    """For the name of a span, of which there must not be as many as callers like."""
    return exchange.model if exchange.model.endswith("*") else attempt.aim.model[:_LONGEST_NAME]


def _served(trace: CallTrace) -> AttemptSpan | None:
    """The attempt whose answer was passed on. Of two that had one, the other was given up."""
    answered = [attempt for attempt in trace.attempts if attempt.end.answered_at is not None]
    if len(answered) > 1:
        answered = [attempt for attempt in answered if attempt.end.outcome != Outcome.ABANDONED]
    return answered[-1] if answered else None


def _usage(exchange: Exchange) -> Attributes:
    """What the upstream reported; a guess of ours is none of the conventions' numbers."""
    usage = exchange.usage
    if usage is None or exchange.estimated:
        return {}
    counts = {
        semconv.INPUT_TOKENS: usage.input,
        semconv.OUTPUT_TOKENS: usage.output,
        semconv.CACHED_TOKENS: usage.cached or None,
        semconv.REASONING_TOKENS: usage.reasoning or None,
    }
    return {name: count for name, count in counts.items() if count is not None}
