"""The series that Prometheus scrapes, and nothing that a caller could make more of.

Labels come from config and from closed lists alone: an unknown model is `unknown`, and where no upstream was tried the
label is empty. Every family is announced from the start. Must not know how a call went its way, only its record.
"""

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence

from prometheus_client import CollectorRegistry, Gauge, Info, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from gateway import __version__
from gateway.call import Exchange, Usage
from gateway.errors import CallerLeft, Overloaded
from gateway.observe.counts import Amounts, Counter, Histogram
from gateway.observe.upstreams import UpstreamReading, families

# Each upper end is a series for each model and upstream: no more of them than tell something of language models.
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_GAP_SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_TOKENS = tuple(4.0**power for power in range(2, 11))  # 16 to 1,048,576
_WAIT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LAG_SECONDS = _WAIT_SECONDS[:-2]
_OVERHEAD_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
PHASES = ("body", "queue", "upstream", "backoff", "streaming")

disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the number of series, and Prometheus reads none of them

Upstreams = Callable[[], Sequence[UpstreamReading]]
"""How the upstreams stand, asked for at each scrape, so that nothing has to be kept in step."""


class Metrics:
    """All families, on a registry of their own, so that two gateways can live in one process."""

    def __init__(self, inflight: Callable[[], int], upstreams: Upstreams, dropped: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self._counts: list[Counter | Histogram] = []
        self._measured: list[Collector] = []  # all the rest
        where = ("model", "upstream")
        self._requests = self._counter(
            "requests", "Requests on API routes, by what came of them.", *where, "status", "outcome", "stream"
        )
        self._duration = self._histogram(
            "request_duration_seconds", "From a request's head to the end of its answer.", _SECONDS, *where, "stream"
        )
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "From a stream's request to its first event with content.", _SECONDS, *where
        )
        self._per_token = self._histogram(
            "time_per_output_token_seconds",
            "Time between output tokens of a stream, after the first.",
            _TOKEN_SECONDS,
            *where,
        )
        self._overhead = self._histogram(
            "overhead_seconds",
            "Time that the gateway itself added: from the whole request to the reply (of a stream, to its first event), "
            "less the time spent waiting for upstreams.",
            _OVERHEAD_SECONDS,
            "stream",
        )
        self._prefill = self._histogram(
            "prefill_seconds",
            "From a stream's sending to an upstream to its first event with content, of the attempt that was served.",
            _SECONDS,
            *where,
        )
        self._gap = self._histogram(
            "stream_gap_seconds", "The longest time between two events of a stream.", _GAP_SECONDS, *where
        )
        self._prompt = self._histogram("prompt_tokens", "Tokens of a call's prompt.", _TOKENS, *where)
        self._completion = self._histogram("completion_tokens", "Tokens of a call's answer.", _TOKENS, *where)
        self._tokens = self._counter(
            "tokens", "Tokens; cached is part of input, reasoning of output.", *where, "type", "source"
        )
        self._waits = {
            "queue": self._histogram(
                "queue_wait_seconds", "Waiting for a place at an upstream.", _WAIT_SECONDS, "upstream"
            ),
            "pool": self._histogram(
                "pool_wait_seconds", "Waiting for a connection while all are busy.", _WAIT_SECONDS, "upstream"
            ),
            "connect": self._histogram(
                "connect_seconds", "Making a connection: name, TCP and TLS.", _WAIT_SECONDS, "upstream"
            ),
        }
        self._attempts = self._counter(
            "upstream_attempts",
            "Tries at an upstream's replica, by what came of them.",
            "upstream",
            "replica",
            "outcome",
        )
        self._stream_ends = self._counter("stream_ends", "How streams ended that had begun.", *where, "reason")
        self._disconnects = self._counter("client_disconnects", "Callers that left before their answer's end.", "phase")
        self._refusals = self._counter("refused_heads", "Requests refused before they could be read.", "status")
        self._retries = self._counter(
            "retries", "Attempts after the first, by the upstream that had failed and how.", "upstream", "reason"
        )
        self._surrenders = self._counter(
            "retries_refused", "Calls that failed and were not tried again, by what forbade it.", "upstream", "reason"
        )
        self._hedges = self._counter(
            "hedges",
            "Calls for which a second attempt was made beside the first, by which one was served.",
            "model",
            "served",
        )
        self._sheds = self._counter("sheds", "Calls refused because an upstream had as many as it may.", "upstream")
        self.loop_lag = self._histogram(
            "event_loop_lag_seconds", "How late the event loop is, looked at twice a second.", _LAG_SECONDS
        )
        self._measure(inflight, upstreams, dropped)

    async def page(self) -> bytes:
        """All families as Prometheus reads them. Made piece by piece: whatever else the loop has to do comes in between."""
        text: list[bytes] = []
        for count in self._counts:
            text.append(count.text().encode())
            await asyncio.sleep(0)
        for collector in self._measured:
            for family in collector.collect():
                text.append(generate_latest(_Alone(family)))
                await asyncio.sleep(0)
        return b"".join(text)

    def _counter(self, name: str, meaning: str, *labels: str) -> Amounts:
        counter = Counter(f"gateway_{name}", meaning, labels)
        self._counts.append(counter)
        self.registry.register(counter)
        return counter.amounts

    def _histogram(self, name: str, meaning: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
        histogram = Histogram(f"gateway_{name}", meaning, labels, bounds)
        self._counts.append(histogram)
        self.registry.register(histogram)
        return histogram

    def _measure(self, inflight: Callable[[], int], upstreams: Upstreams, dropped: Callable[[], int]) -> None:
        """What is read at the scrape, so that nothing has to be kept in step; and what is there before any call."""
        serving = Gauge("gateway_inflight_requests", "Requests being served.", registry=None)
        serving.set_function(lambda: float(inflight()))
        lost = Gauge("gateway_log_lines_dropped", "Log lines that found no reader.", registry=None)
        lost.set_function(lambda: float(dropped()))
        build = Info("gateway_build", "What is running.", registry=None)
        build.info({"version": __version__})
        self._measured += [serving, lost, build, _Standing(upstreams, self._forget_replicas)]
        self._measured.append(ProcessCollector(registry=None))
        for collector in self._measured:
            self.registry.register(collector)
        for phase in PHASES:
            self._disconnects[phase,] = 0.0

    def refused(self, status: int) -> None:
        """A request was refused by the listening side, whose head was never read to its end."""
        self._refusals[status,] += 1

    def _forget_replicas(self, known: Collection[tuple[str, str]]) -> None:
        """Drop the attempts at replicas that are no more, by upstream and name: addresses come and go for ever."""
        for labels in [labels for labels in self._attempts if labels[:2] not in known]:
            del self._attempts[labels]

    def finish(self, exchange: Exchange) -> None:
        """Count a call that has ended."""
        if exchange.kind == "unknown":
            return
        model, upstream, outcome = exchange.model, exchange.upstream, exchange.outcome
        stream = "true" if exchange.stream else "false"
        self._requests[model, upstream, exchange.status, outcome, stream] += 1
        self._duration.observe((model, upstream, stream), exchange.ended_at - exchange.started_at)
        if exchange.end_reason == CallerLeft.code:
            self._disconnects[exchange.phase,] += 1
        elif exchange.end_reason == Overloaded.code:
            self._sheds[upstream,] += 1
        if exchange.waits:
            for what, waited_at, seconds in exchange.waits:
                self._waits[what].observe((waited_at,), seconds)
        if exchange.attempts:
            self._count_tried(exchange, stream)

    def _count_tried(self, exchange: Exchange, stream: str) -> None:
        for ended in exchange.tries:
            self._attempts[ended] += 1
        if exchange.retries or exchange.gave_up or exchange.hedge:
            self._count_retries(exchange)
        if (overhead := exchange.overhead) is not None:
            self._overhead.observe((stream,), overhead)
        if exchange.usage is not None:
            self._count_tokens(exchange, exchange.usage)
        if exchange.phase == "streaming":
            self._count_stream(exchange)

    def _count_retries(self, exchange: Exchange) -> None:
        for failed in exchange.retries:
            self._retries[failed] += 1
        if exchange.gave_up:
            self._surrenders[exchange.upstream, exchange.gave_up] += 1
        if exchange.hedge:
            self._hedges[exchange.model, exchange.hedge] += 1

    def _count_tokens(self, exchange: Exchange, usage: Usage) -> None:
        model, upstream = where = (exchange.model, exchange.upstream)
        source = "estimated" if exchange.estimated else "reported"
        self._prompt.observe(where, usage.input)
        if exchange.kind != "embeddings":
            self._completion.observe(where, usage.output)
        if usage.input:
            self._tokens[model, upstream, "input", source] += usage.input
        if usage.output:
            self._tokens[model, upstream, "output", source] += usage.output
        if usage.cached:
            self._tokens[model, upstream, "cached", source] += usage.cached
        if usage.reasoning:
            self._tokens[model, upstream, "reasoning", source] += usage.reasoning

    def _count_stream(self, exchange: Exchange) -> None:
        where = (exchange.model, exchange.upstream)
        self._stream_ends[*where, exchange.end_reason] += 1
        if exchange.events > 1:
            self._gap.observe(where, exchange.longest_gap)
        if exchange.content_at is None:
            return
        self._first_token.observe(where, exchange.content_at - exchange.started_at)
        if exchange.last_event_at is None or exchange.sent_at is None:
            return  # a whole reply, passed on as the events of a stream
        self._prefill.observe(where, exchange.content_at - exchange.sent_at)
        if exchange.usage is not None and exchange.usage.output > 1:
            spent = exchange.last_event_at - exchange.content_at
            self._per_token.observe(where, spent / (exchange.usage.output - 1))


class _Alone(Collector):
    """One family by itself."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


class _Standing(Collector):
    """The families of the upstreams; and whoever keeps series by replica is told which ones there are."""

    def __init__(self, upstreams: Upstreams, forget: Callable[[Collection[tuple[str, str]]], None]) -> None:
        self._upstreams = upstreams
        self._forget = forget

    def collect(self) -> Iterator[Metric]:
        upstreams = self._upstreams()
        self._forget({(upstream.name, replica.name) for upstream in upstreams for replica in upstream.replicas})
        yield from families(upstreams)
