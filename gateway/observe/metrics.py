"""The series that Prometheus scrapes, and nothing that a caller could make more of.

Labels come from config alone: an unknown model is `unknown`, and where no upstream was tried the label is empty. Every
family is announced from the start. Children are looked up once for each combination, because looking one up costs more
than counting. Must not know how a call went its way, only its record.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway import __version__
from gateway.call import Exchange
from gateway.outcome import Outcome

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_OVERHEAD_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
PHASES = ("body", "upstream", "streaming")

disable_created_metrics()  # they would double the number of series, and Prometheus reads none of them

Load = Callable[[], Iterable[tuple[str, str, int]]]
"""Upstream, replica and calls in flight there, asked for at each scrape."""


class _Children(NamedTuple):
    """What is counted for every call with the same labels."""

    requests: Counter
    duration: Histogram
    overhead: Histogram


class Metrics:
    """All families, on a registry of their own, so that two gateways can live in one process."""

    def __init__(self, inflight: Callable[[], int], load: Load, dropped: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        where = ("model", "upstream")
        self._requests = Counter(
            "gateway_requests",
            "Requests on API routes, by what came of them.",
            (*where, "status", "outcome", "stream"),
            registry=registry,
        )
        self._duration = Histogram(
            "gateway_request_duration_seconds",
            "From a request's head to the end of its answer.",
            (*where, "stream"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._first_token = Histogram(
            "gateway_time_to_first_token_seconds",
            "From a stream's request to its first event with content.",
            where,
            buckets=_SECONDS,
            registry=registry,
        )
        self._per_token = Histogram(
            "gateway_time_per_output_token_seconds",
            "Time between output tokens of a stream, after the first.",
            where,
            buckets=_TOKEN_SECONDS,
            registry=registry,
        )
        self._overhead = Histogram(
            "gateway_overhead_seconds",
            "Time that the gateway itself added: from the whole request to the reply (of a stream, to its first event), "
            "less the time spent waiting for upstreams.",
            ("stream",),
            buckets=_OVERHEAD_SECONDS,
            registry=registry,
        )
        self._tokens = Counter(
            "gateway_tokens",
            "Tokens; cached is part of input, reasoning of output.",
            (*where, "type"),
            registry=registry,
        )
        self._attempts = Counter(
            "gateway_upstream_attempts",
            "Tries at an upstream's replica, by what came of them.",
            ("upstream", "replica", "outcome"),
            registry=registry,
        )
        self._stream_ends = Counter(
            "gateway_stream_ends", "How streams ended that had begun.", (*where, "reason"), registry=registry
        )
        self._disconnects = Counter(
            "gateway_client_disconnects", "Callers that left before their answer's end.", ("phase",), registry=registry
        )
        self._refusals = Counter(
            "gateway_refused_heads", "Requests refused before they could be read.", ("status",), registry=registry
        )
        Gauge("gateway_inflight_requests", "Requests being served.", registry=registry).set_function(
            lambda: float(inflight())
        )
        Gauge("gateway_log_lines_dropped", "Log lines that found no reader.", registry=registry).set_function(
            lambda: float(dropped())
        )
        Info("gateway_build", "What is running.", registry=registry).info({"version": __version__})
        registry.register(_Load(load))
        for phase in PHASES:
            self._disconnects.labels(phase)
        self._children: dict[tuple[str, str, int, str, bool], _Children] = {}

    def refused(self, status: int) -> None:
        """A request was refused by the listening side, whose head was never read to its end."""
        self._refusals.labels(str(status)).inc()

    def finish(self, exchange: Exchange) -> None:
        """Count a call that has ended."""
        if exchange.kind == "unknown":
            return
        key = (exchange.model, exchange.upstream, exchange.status, exchange.outcome, exchange.stream)
        children = self._children.get(key) or self._look_up(key)
        children.requests.inc()
        children.duration.observe(exchange.ended_at - exchange.started_at)
        if exchange.attempts:
            self._count_attempt(exchange, children)
        if exchange.outcome == Outcome.ABANDONED:
            self._disconnects.labels(exchange.phase).inc()

    def _look_up(self, key: tuple[str, str, int, str, bool]) -> _Children:
        model, upstream, status, outcome, stream = key
        flag = "true" if stream else "false"
        children = _Children(
            self._requests.labels(model, upstream, str(status), outcome, flag),
            self._duration.labels(model, upstream, flag),
            self._overhead.labels(flag),
        )
        self._children[key] = children
        return children

    def _count_attempt(self, exchange: Exchange, children: _Children) -> None:
        self._attempts.labels(exchange.upstream, exchange.replica, exchange.outcome).inc()
        if (overhead := exchange.overhead) is not None:
            children.overhead.observe(overhead)
        if exchange.usage is not None:
            self._count_tokens(exchange)
        if exchange.phase == "streaming":
            self._count_stream(exchange)

    def _count_tokens(self, exchange: Exchange) -> None:
        usage = exchange.usage
        if usage is None:
            return
        for type_, count in (
            ("input", usage.input),
            ("output", usage.output),
            ("cached", usage.cached),
            ("reasoning", usage.reasoning),
        ):
            if count:
                self._tokens.labels(exchange.model, exchange.upstream, type_).inc(count)

    def _count_stream(self, exchange: Exchange) -> None:
        where = (exchange.model, exchange.upstream)
        self._stream_ends.labels(*where, exchange.end_reason).inc()
        if exchange.content_at is None or exchange.last_event_at is None:
            return
        self._first_token.labels(*where).observe(exchange.content_at - exchange.started_at)
        if exchange.usage is not None and exchange.usage.output > 1:
            spent = exchange.last_event_at - exchange.content_at
            self._per_token.labels(*where).observe(spent / (exchange.usage.output - 1))


class _Load(Collector):
    """Read at the scrape, so that nothing has to be kept in step."""

    def __init__(self, load: Load) -> None:
        self._load = load

    def collect(self) -> Iterator[Metric]:
        inflight = GaugeMetricFamily(
            "gateway_upstream_inflight", "Calls in flight at a replica.", labels=["upstream", "replica"]
        )
        for upstream, replica, calls in self._load():
            inflight.add_metric([upstream, replica], calls)
        yield inflight
