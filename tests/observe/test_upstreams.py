"""How upstreams stand, as series: every replica in exactly one state, and nothing of one that has gone."""

from collections.abc import Iterable, Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from gateway.fleet import Standing
from gateway.observe.upstreams import STATES, EngineReading, ReplicaReading, UpstreamReading, families

FAMILIES = {
    "gateway_upstream_inflight": {"upstream", "replica"},
    "gateway_upstream_state": {"upstream", "replica", "state"},
    "gateway_upstream_queued": {"upstream"},
    "gateway_upstream_retry_budget": {"upstream"},
    "gateway_upstream_panic": {"upstream"},
    "gateway_upstream_key_refused": {"upstream"},
    "gateway_upstream_out_of_quota": {"upstream"},
    "gateway_upstream_latency_seconds": {"upstream", "replica"},
    "gateway_upstream_engine_batch_size": {"upstream", "replica"},
    "gateway_upstream_engine_running": {"upstream", "replica"},
    "gateway_upstream_engine_waiting": {"upstream", "replica"},
    "gateway_upstream_engine_kv_usage": {"upstream", "replica"},
}

VLLM = UpstreamReading(
    "vllm",
    [
        ReplicaReading("vllm-0:8000", "available", 3, EngineReading(4, 1, 0.5), 0.25),
        ReplicaReading("vllm-1:8000", "ejected", 0),
    ],
    queued=7,
    budget=12.0,
    panics=True,
    key_refused=False,
)
OPENAI = UpstreamReading(
    "openai", [ReplicaReading("api.openai.com", "cooling", 1)], 0, budget=0.0, panics=False, key_refused=True, dry=True
)


class Scraped(Collector):
    """A page of these readings, as Prometheus would get it."""

    def __init__(self, *readings: UpstreamReading) -> None:
        self.readings = readings
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        yield from families(self.readings)

    @property
    def page(self) -> str:
        return generate_latest(self.registry).decode()

    def __getitem__(self, name: str) -> dict[tuple[str, ...], float]:
        """The values of a family, by upstream, replica and state."""
        (family,) = (one for one in text_string_to_metric_families(self.page) if one.name == f"gateway_upstream_{name}")
        labels = ("upstream", "replica", "state")
        series = [
            (tuple(sample.labels[label] for label in labels if label in sample.labels), sample.value)
            for sample in family.samples
        ]
        assert len(dict(series)) == len(series), "one series twice"
        return dict(series)


def one(*replicas: ReplicaReading) -> Scraped:
    return Scraped(UpstreamReading("up", list(replicas), queued=0, budget=0.0, panics=False, key_refused=False))


@pytest.mark.parametrize("readings", [[], [VLLM], [VLLM, OPENAI], [UpstreamReading("up", [], 0, 0.0, False, False)]])
def test_every_family_is_announced_whatever_there_is(readings: Iterable[UpstreamReading]) -> None:
    found = {family.name: family for family in families(readings)}
    assert set(found) == set(FAMILIES)
    assert {family.type for family in found.values()} == {"gauge"}
    assert all(family.documentation.endswith(".") for family in found.values())


def test_labels_are_those_that_are_promised() -> None:
    triton = UpstreamReading(
        "t", [ReplicaReading("t:1", "available", 0, EngineReading(None, 0, None, 8))], 0, 0, False, False
    )
    for family in families([VLLM, OPENAI, triton]):
        assert {frozenset(sample.labels) for sample in family.samples} == {frozenset(FAMILIES[family.name])}


def test_each_upstream_has_its_own_figures() -> None:
    scraped = Scraped(VLLM, OPENAI)
    assert scraped["queued"] == {("vllm",): 7, ("openai",): 0}
    assert scraped["retry_budget"] == {("vllm",): 12, ("openai",): 0}
    assert scraped["panic"] == {("vllm",): 1, ("openai",): 0}
    assert scraped["key_refused"] == {("vllm",): 0, ("openai",): 1}
    assert scraped["inflight"] == {
        ("vllm", "vllm-0:8000"): 3,
        ("vllm", "vllm-1:8000"): 0,
        ("openai", "api.openai.com"): 1,
    }


def test_what_only_some_know_is_told_of_those_alone() -> None:
    triton = UpstreamReading(
        "t", [ReplicaReading("t:8000", "available", 0, EngineReading(None, 6, None, 8))], 0, 0, False, False
    )
    scraped = Scraped(VLLM, OPENAI, triton)
    assert scraped["out_of_quota"] == {("vllm",): 0, ("openai",): 1, ("t",): 0}
    assert scraped["latency_seconds"][("vllm", "vllm-0:8000")] == 0.25
    assert scraped["engine_running"] == {("vllm", "vllm-0:8000"): 4}
    assert scraped["engine_waiting"] == {("vllm", "vllm-0:8000"): 1, ("t", "t:8000"): 6}
    assert scraped["engine_kv_usage"] == {("vllm", "vllm-0:8000"): 0.5}
    assert scraped["engine_batch_size"] == {("t", "t:8000"): 8}


@pytest.mark.parametrize("state", list(Standing))
def test_a_replica_is_in_the_state_that_it_is_in_and_in_no_other(state: Standing) -> None:
    found = one(ReplicaReading("a:1", state, 0))["state"]
    assert found == {("up", "a:1", name): float(name == state) for name in Standing}


def test_the_states_that_are_told_are_all_that_there_are() -> None:
    assert set(STATES) == set(Standing)
    assert len(STATES) == len(Standing)


def test_a_replica_that_has_gone_takes_its_series_with_it() -> None:
    scraped = one(ReplicaReading("a:1", "available", 0), ReplicaReading("b:1", "available", 2))
    assert "b:1" in scraped.page
    (before,) = scraped.readings
    scraped.readings = (before._replace(replicas=before.replicas[:1]),)
    assert "b:1" not in scraped.page
    assert scraped["inflight"] == {("up", "a:1"): 0}


def test_an_upstream_without_replicas_still_tells_how_it_stands() -> None:
    scraped = one()
    assert scraped["inflight"] == scraped["state"] == {}
    assert scraped["queued"] == {("up",): 0}


def test_an_address_with_anything_in_it_is_one_label() -> None:
    for name in ("[::1]:8000", "a:8000/v1", 'quote"and\\slash'):
        assert one(ReplicaReading(name, "available", 4))["inflight"] == {("up", name): 4}
