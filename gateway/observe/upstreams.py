"""How the upstreams stand, as Prometheus reads it: read at the scrape, so that nothing has to be kept in step.

Labels are the upstreams' names and the replicas' addresses; a replica that has gone takes its series with it. It is told
what to tell: must not know the rooms that the figures come from.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prometheus_client.core import GaugeMetricFamily, Metric

STATES = ("available", "cooling", "ejected", "probing", "unhealthy")


class EngineReading(NamedTuple):
    """What a replica's engine said of itself: requests that run and that wait, and the share of its KV cache in use."""

    running: float
    waiting: float
    kv: float | None


class ReplicaReading(NamedTuple):
    """One replica: its address, one of STATES, calls in flight, and what its engine said, if that is fresh."""

    name: str
    state: str
    inflight: int
    engine: EngineReading | None = None


class UpstreamReading(NamedTuple):
    """One upstream. `budget`: further attempts that it would pay for now."""

    name: str
    replicas: list[ReplicaReading]
    queued: int
    budget: float
    panics: bool
    key_refused: bool


def families(readings: Iterable[UpstreamReading]) -> Iterator[Metric]:
    """The families, each with all upstreams."""
    inflight = _gauge("inflight", "Calls in flight at a replica.", "replica")
    state = _gauge("state", "1 for the state that a replica is in, 0 for the others.", "replica", "state")
    queued = _gauge("queued", "Calls that wait for a place at an upstream.")
    budget = _gauge("retry_budget", "Further attempts that an upstream's retry budget would pay for now.")
    panics = _gauge("panic", "1 while over half of an upstream's replicas are out, so that all are used.")
    refused = _gauge("key_refused", "1 while the gateway's key at an upstream is out, because it was refused.")
    running = _gauge("engine_running", "Requests that an engine is working on, as it says.", "replica")
    waiting = _gauge("engine_waiting", "Requests that wait at an engine, as it says.", "replica")
    kv = _gauge("engine_kv_usage", "Share of an engine's KV cache that is in use, 0 to 1, as it says.", "replica")
    for upstream in readings:
        queued.add_metric([upstream.name], upstream.queued)
        budget.add_metric([upstream.name], upstream.budget)
        panics.add_metric([upstream.name], upstream.panics)
        refused.add_metric([upstream.name], upstream.key_refused)
        for replica in upstream.replicas:
            inflight.add_metric([upstream.name, replica.name], replica.inflight)
            for name in STATES:
                state.add_metric([upstream.name, replica.name, name], name == replica.state)
            if (engine := replica.engine) is not None:
                running.add_metric([upstream.name, replica.name], engine.running)
                waiting.add_metric([upstream.name, replica.name], engine.waiting)
                if engine.kv is not None:
                    kv.add_metric([upstream.name, replica.name], engine.kv)
    yield from (inflight, state, queued, budget, panics, refused, running, waiting, kv)


def _gauge(name: str, meaning: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"gateway_upstream_{name}", meaning, labels=["upstream", *labels])
