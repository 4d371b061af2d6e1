"""Where calls go: which route a name finds, which target and replica are taken, and what is given back."""

import random
from collections import Counter

import httpx
import pytest

from gateway.dialects import DIALECTS
from gateway.fleet import Fleet, Lease, Replica, Route, Target, Timeouts, Upstream


def refuse(_: httpx.Request) -> httpx.Response:
    raise AssertionError("nothing is sent here")


class Transport(httpx.MockTransport):
    """Counts how often it is closed."""

    def __init__(self) -> None:
        super().__init__(refuse)
        self.closed = 0

    async def aclose(self) -> None:
        self.closed += 1


def upstream(name: str = "up", replicas: int = 1, timeouts: Timeouts | None = None) -> Upstream:
    dialect = DIALECTS["openai"]
    urls = [f"http://{name}-{number}:8000/v1" for number in range(replicas)]
    return Upstream(name, dialect, [Replica(url, dialect, []) for url in urls], Transport(), timeouts or Timeouts())


def fleet(*names: str) -> Fleet:
    only = upstream()
    return Fleet({"up": only}, [Route(name, [Target(only, None, 1.0)]) for name in names])


@pytest.mark.parametrize(
    ("model", "route"),
    [
        ("gpt-4o", "gpt-4o"),
        ("gpt-4o-mini", "gpt-4*"),
        ("gpt-4", "gpt-4*"),
        ("gpt-5", "gpt-*"),
        ("gpt-", "gpt-*"),
        ("other", "*"),
        ("", "*"),
        ("gpt-4*", "gpt-4*"),
        ("gpt-*", "gpt-*"),
        ("*", "*"),
        ("GPT-4o", "*"),
    ],
)
def test_a_models_own_name_wins_over_a_pattern_and_a_longer_pattern_over_a_shorter(model: str, route: str) -> None:
    for names in (["*", "gpt-*", "gpt-4*", "gpt-4o"], ["gpt-4o", "gpt-4*", "gpt-*", "*"]):
        found = fleet(*names).resolve(model)
        assert found is not None
        assert found.name == route


def test_a_name_that_nothing_serves_finds_nothing() -> None:
    assert fleet("a", "b*").resolve("c") is None
    assert fleet("a", "b*").resolve("") is None
    assert fleet().resolve("a") is None


def test_targets_are_chosen_by_weight() -> None:
    heavy, light, never = (Target(upstream(name), None, weight) for name, weight in (("h", 3), ("l", 1), ("n", 0)))
    rng = random.Random(1)
    route = Route("chat", [heavy, light, never])
    chosen = Counter(route.choose(rng).upstream.name for _ in range(8000))
    assert chosen["n"] == 0
    assert 2.7 < chosen["h"] / chosen["l"] < 3.3


def test_one_target_needs_no_chance() -> None:
    only = Target(upstream(), None, 1.0)
    rng = random.Random(1)
    before = rng.getstate()
    assert Route("chat", [only]).choose(rng) is only
    assert upstream().lease(rng).replica.inflight == 1
    assert rng.getstate() == before


def test_the_replica_with_the_fewest_calls_is_taken_and_ties_are_broken_by_chance() -> None:
    many = upstream(replicas=4)
    rng = random.Random(1)
    leases = [many.lease(rng) for _ in range(400)]
    assert [replica.inflight for replica in many.replicas] == [100] * 4
    for lease in leases:
        if lease.replica is many.replicas[2]:
            lease.settle()
    assert {many.lease(rng).replica for _ in range(100)} == {many.replicas[2]}

    first = Counter(upstream(replicas=4).lease(rng).replica.name for _ in range(400))
    assert len(first) == 4
    assert min(first.values()) > 60


def test_a_lease_is_settled_once_however_often_it_is_settled() -> None:
    (replica,) = upstream().replicas
    kept, settled = Lease(replica), Lease(replica)
    for _ in range(3):
        settled.settle()
    assert replica.inflight == 1
    kept.settle()
    assert replica.inflight == 0


def test_a_replica_is_named_by_its_address_and_nothing_that_is_secret() -> None:
    dialect = DIALECTS["openai"]
    replica = Replica("https://user:pass@api.example.com:8443/v1", dialect, [])
    assert replica.name == "api.example.com:8443"
    assert Replica("http://[::1]:8000", dialect, []).name == "[::1]:8000"


def test_a_silent_transport_is_given_the_longer_of_its_two_patiences() -> None:
    made = upstream(timeouts=Timeouts(first_token=7, reply=90, idle=30))
    assert made.stream_timeout["first_byte"] == 7
    assert made.stream_timeout["read"] == 30
    assert made.plain_timeout["first_byte"] == 90
    assert made.plain_timeout["read"] == 90


async def test_closing_a_fleet_closes_every_transport() -> None:
    upstreams = {name: upstream(name) for name in ("a", "b")}
    await Fleet(upstreams, []).aclose()
    for each in upstreams.values():
        assert isinstance(each.transport, Transport)
        assert each.transport.closed == 1
