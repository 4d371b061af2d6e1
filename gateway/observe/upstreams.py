"""How the upstreams stand, as Prometheus reads it: read at the scrape, so that nothing has to be kept in step.

Labels are the upstreams' names and the replicas' addresses; a replica that has gone takes its series with it. It is told
what to tell: must not know the rooms that the figures come from.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prometheus_client.core import GaugeMetricFamily, Metric

STATES = ("available", "cooling", "ejected", "probing", "unhealthy")


class EngineReading(NamedTuple):
    """What a replica's engine said of itself, None where it does not say.

    Requests that run and that wait, the share of its KV cache in use, and how many requests it works on at once.
    """

    running: float | None
    waiting: float
    kv: float | None
    batch: float | None = None


class ReplicaReading(NamedTuple):
    """One replica: its address, one of STATES, calls in flight, what its engine said, if that is fresh, and how quick it is."""

    name: str
    state: str
    inflight: int
    engine: EngineReading | None = None
    latency: float = 0.0


class UpstreamReading(NamedTuple):
    """One upstream. `budget`: further attempts that it would pay for now. `dry`: its key is out because nothing is left."""

    name: str
    replicas: list[ReplicaReading]
    queued: int
    budget: float
    panics: bool
    key_refused: bool
    dry: bool = False


def families(readings: Iterable[UpstreamReading]) -> Iterator[Metric]:
    """The families, each with all upstreams."""
    inflight = _gauge("inflight", "Calls in flight at a replica.", "replica")
    state = _gauge("state", "1 for the state that a replica is in, 0 for the others.", "replica", "state")
    queued = _gauge("queued", "Calls that wait for a place at an upstream.")
    budget = _gauge("retry_budget", "Further attempts that an upstream's retry budget would pay for now.")
    panics = _gauge("panic", "1 while over half of an upstream's replicas are out, so that all are used.")
    refused = _gauge("key_refused", "1 while the gateway's key at an upstream is out, because it was refused.")
    dry = _gauge("out_of_quota", "1 while the gateway's key at an upstream is out, because its account is dry.")
    latency = _gauge(
        "latency_seconds", "Time to a replica's first byte of late, by which calls are balanced.", "replica"
    )
    running = _gauge("engine_running", "Requests that an engine is working on, as it says.", "replica")
    waiting = _gauge("engine_waiting", "Requests that wait at an engine, as it says.", "replica")
    kv = _gauge("engine_kv_usage", "Share of an engine's KV cache that is in use, 0 to 1, as it says.", "replica")
    batch = _gauge("engine_batch_size", "Requests that an engine works on at once, as it says.", "replica")
    for upstream in readings:
        queued.add_metric([upstream.name], upstream.queued)
        budget.add_metric([upstream.name], upstream.budget)
        panics.add_metric([upstream.name], upstream.panics)
        refused.add_metric([upstream.name], upstream.key_refused)
        dry.add_metric([upstream.name], upstream.dry)
        for replica in upstream.replicas:
            inflight.add_metric([upstream.name, replica.name], replica.inflight)
            for name in STATES:
                state.add_metric([upstream.name, replica.name, name], name == replica.state)
            latency.add_metric([upstream.name, replica.name], replica.latency)
            for family, said in zip((running, waiting, kv, batch), replica.engine or (), strict=False):
                if said is not None:
                    family.add_metric([upstream.name, replica.name], said)
    yield from (inflight, state, latency, queued, budget, panics, refused, dry, running, waiting, kv, batch)


def _gauge(name: str, meaning: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"gateway_upstream_{name}", meaning, labels=["upstream", *labels])
