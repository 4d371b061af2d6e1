"""The fleet that settings describe: where each name leads, what holds at each upstream, and what goes on beside."""

import random
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from gateway.assembly import Watcher, build_fleet, readings
from gateway.config import Settings
from gateway.dialects import DIALECTS
from gateway.dialects.openai import OpenAI
from gateway.discovery import Discovery
from gateway.errors import UpstreamUnauthorized
from gateway.fleet import Fleet, Hedge, Lease, Route, Timeouts, Upstream
from gateway.health import HealthChecks
from gateway.observe.upstreams import ReplicaReading, UpstreamReading
from gateway.policy.retry import RetrySettings
from gateway.transport import Engine
from tests.support.clock import virtual_time

anyio_backend = virtual_time

NOW = 1000.0
Given = Mapping[str, Any]


class Asked(httpx.MockTransport):
    """The way out for all upstreams: serves everything, and keeps what was asked for."""

    def __init__(self, status: int = 200) -> None:
        self.requests: list[httpx.Request] = []
        self._status = status
        super().__init__(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return httpx.Response(self._status, stream=httpx.ByteStream(b"{}"))


class Middle(random.Random):
    """Chance that jitters nothing."""

    def random(self) -> float:
        return 0.5


def described(
    upstreams: Mapping[str, Given], models: Mapping[str, Given] | None = None, **sections: Any
) -> tuple[Fleet, list[Watcher], Asked]:
    """What comes of settings, and the transport that all of it goes by."""
    given = {
        "auth": {"required": False},
        "upstreams": {name: {"kind": "openai", **upstream} for name, upstream in upstreams.items()},
        "models": models or {"*": {"targets": [{"upstream": next(iter(upstreams))}]}},
        **sections,
    }
    asked = Asked()
    fleet, watchers = build_fleet(Settings.model_validate(given), asked, Middle(), lambda: NOW)
    return fleet, watchers, asked


def upstream(sections: Given | None = None, **settings: Any) -> Upstream:
    """The only one there is."""
    if not {"url", "urls"} & set(settings):
        settings["url"] = "http://up:8000/v1"
    fleet, *_ = described({"up": settings}, **(sections or {}))
    return fleet.upstreams["up"]


URLS: dict[str, Given] = {name: {"url": f"http://{name}:8000/v1"} for name in ("a", "b", "c")}


def to(name: str, **more: Any) -> dict[str, Any]:
    return {"upstream": name, **more}


def route(name: str, **models: Given) -> Route:
    """One of these models; a * in a name is written as `any`."""
    named = {written.replace("any", "*"): model for written, model in models.items()}
    fleet, *_ = described(URLS, named)
    return fleet.routes[name]


def stages(of: Route) -> list[list[tuple[str, str | None, float]]]:
    return [[(target.upstream.name, target.model, target.weight) for target in stage] for stage in of.stages]


# Where names lead.


def test_a_models_targets_are_one_stage_with_their_names_and_weights() -> None:
    found = route("m", m={"targets": [to("a", model="x", weight=3), to("b")]})
    assert stages(found) == [[("a", "x", 3.0), ("b", None, 1.0)]]
    assert found.hedge is None


def test_a_target_without_weight_is_known_and_never_tried() -> None:
    found = route("m", m={"targets": [to("a", weight=0), to("b", weight=0.5)]})
    assert stages(found) == [[("b", None, 0.5)]]
    assert [target.upstream.name for target in found.targets] == ["a", "b"]


def test_fallbacks_are_stages_in_their_order_however_the_models_are_ordered() -> None:
    found = route(
        "m",
        third={"targets": [to("c", model="z")]},
        m={"targets": [to("a")], "fallbacks": ["second", "third"]},
        second={"targets": [to("b", model="y"), to("c", weight=2)]},
    )
    assert stages(found) == [
        [("a", None, 1.0)],
        [("b", "y", 1.0), ("c", "second", 2.0)],
        [("c", "z", 1.0)],
    ]


def test_a_fallback_is_asked_for_by_its_own_name_and_not_by_the_callers() -> None:
    found = route("m", m={"targets": [to("a")], "fallbacks": ["spare"]}, spare={"targets": [to("b")]})
    assert stages(found)[1] == [("b", "spare", 1.0)]


def test_the_fallbacks_of_a_fallback_are_not_followed() -> None:
    found = route(
        "m",
        m={"targets": [to("a")], "fallbacks": ["second"]},
        second={"targets": [to("b")], "fallbacks": ["third", "m"]},
        third={"targets": [to("c")]},
    )
    assert [name for stage in stages(found) for name, *_ in stage] == ["a", "b"]


def test_a_fallback_may_be_what_a_pattern_takes_and_the_longer_pattern_takes_it() -> None:
    found = route(
        "m",
        **{"any": {"targets": [to("a")]}, "gpt-any": {"targets": [to("b")]}, "gpt-4any": {"targets": [to("c")]}},
        m={"targets": [to("a", model="x")], "fallbacks": ["gpt-4o", "gpt-5", "other"]},
    )
    assert stages(found) == [
        [("a", "x", 1.0)],
        [("c", "gpt-4o", 1.0)],
        [("b", "gpt-5", 1.0)],
        [("a", "other", 1.0)],
    ]


def test_a_pattern_may_fall_back_to_one_name_that_it_takes_itself() -> None:
    found = route("gpt-*", **{"gpt-any": {"targets": [to("a"), to("b", model="x")], "fallbacks": ["gpt-mini"]}})
    assert stages(found) == [
        [("a", None, 1.0), ("b", "x", 1.0)],
        [("a", "gpt-mini", 1.0), ("b", "x", 1.0)],
    ]


def test_a_fallbacks_targets_without_weight_are_not_tried_either() -> None:
    found = route(
        "m",
        m={"targets": [to("a")], "fallbacks": ["spare"]},
        spare={"targets": [to("b", weight=0), to("c")]},
    )
    assert stages(found)[1] == [("c", "spare", 1.0)]


def test_models_share_an_upstream_and_not_a_copy_of_it() -> None:
    fleet, *_ = described(
        URLS,
        {"m": {"targets": [to("a")], "fallbacks": ["n"]}, "n": {"targets": [to("a")]}, "o": {"targets": [to("b")]}},
    )
    found = {target.upstream for name in "mn" for stage in fleet.routes[name].stages for target in stage}
    assert found == {fleet.upstreams["a"]}
    assert set(fleet.upstreams) == {"a", "b", "c"}


@pytest.mark.parametrize(("after", "hedge"), [(0.8, Hedge(0.8)), ("p95", Hedge(None))])
def test_a_hedge_is_after_so_many_seconds_or_after_as_long_as_most_calls_take(after: object, hedge: Hedge) -> None:
    found = route("m", m={"targets": [to("a")], "hedge": {"after": after}}, n={"targets": [to("a")]})
    assert found.hedge == hedge


# What holds at an upstream.


@pytest.mark.parametrize(
    ("urls", "names"),
    [
        (["http://a:8000/v1", "http://b:8000/v1"], ["a:8000", "b:8000"]),
        (["http://a:8000/one/v1", "http://b:8000/two/v1"], ["a:8000", "b:8000"]),
        (["http://a:8000/one/v1", "http://a:8000/two/v1"], ["a:8000/one/v1", "a:8000/two/v1"]),
        (["https://api.example.com/v1"], ["api.example.com"]),
    ],
)
def test_a_replica_has_the_name_of_its_address_and_of_its_path_where_that_is_not_enough(
    urls: list[str], names: list[str]
) -> None:
    assert [replica.name for replica in upstream(urls=urls).replicas] == names


@pytest.mark.parametrize(
    "urls",
    [
        ["http://a:8000/one", "http://a:8000/two", "http://b:8000/one"],
        ["http://a:8000", "http://a:8000/v1"],
        ["http://a:8000/v1", "http://a:8000/v1/v1"],
        ["http://a/v1", "https://a/v1"],
        ["http://a/v1", "http://a:80/v1"],
        ["http://a:8000/v1", "http://A:8000/v1"],
    ],
)
def test_no_two_replicas_of_an_upstream_have_one_name(urls: list[str]) -> None:
    names = [replica.name for replica in upstream(urls=urls).replicas]
    assert len(set(names)) == len(urls)


def test_replicas_have_their_weights_and_their_own_breakers() -> None:
    one, other = upstream(urls=["http://a:1/v1", {"url": "http://b:1/v1", "weight": 2.5}]).replicas
    assert (one.weight, other.weight) == (1.0, 2.5)
    for _ in range(5):
        one.breaker.failed(one.breaker.begin(NOW), NOW)
    assert one.out
    assert not other.out


def test_timeouts_and_retries_are_the_upstreams_own_over_the_general_ones() -> None:
    made = upstream(
        {"timeouts": {"connect": 1, "idle": 9}, "retry": {"attempts": 4, "budget": 0.5}},
        timeouts={"idle": 7},
        retry={"attempts": 2, "reserve": 3},
    )
    assert made.timeouts == Timeouts(connect=1, idle=7)
    assert made.retry == RetrySettings(attempts=2, budget=0.5, reserve=3)
    assert made.budget.left(NOW) == 3


def test_each_upstream_pays_for_its_own_retries() -> None:
    fleet, *_ = described({"a": URLS["a"], "b": URLS["b"]}, retry={"budget": 0, "reserve": 1})
    a, b = fleet.upstreams.values()
    assert a.budget.withdraw(NOW)
    assert not a.budget.withdraw(NOW)
    assert b.budget.withdraw(NOW)


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({}, 1000),
        ({"concurrency": {"limit": 3}}, 3),
        ({"transport": {"max_connections": 7}}, 7),
        ({"concurrency": {"limit": 3}, "transport": {"max_connections": 7}}, 3),
    ],
)
def test_a_replica_is_full_at_its_limit_which_is_never_above_the_number_of_connections(
    settings: Given, limit: int
) -> None:
    made = upstream(**settings)
    (replica,) = made.replicas
    replica.inflight = limit - 1
    assert not made.is_full(replica)
    replica.inflight = limit
    assert made.is_full(replica)
    assert made.choose("m", NOW, lambda: 0.5) is None


def test_replicas_are_balanced_as_it_is_said() -> None:
    urls = [f"http://{name}:1/v1" for name in "abc"]
    made = upstream(urls=urls, balance="round_robin")
    chosen = [made.choose("m", NOW, lambda: 0.5) for _ in range(6)]
    assert [one and one.name for one in chosen] == ["a:1", "b:1", "c:1"] * 2


def test_a_replica_is_ejected_and_comes_back_as_it_is_said() -> None:
    made = upstream(
        {"breaker": {"failures": 3, "max_ejection": 60}}, breaker={"failures": 2, "ejection": 7, "slow_start": 20}
    )
    (replica,) = made.replicas
    breaker = replica.breaker
    for _ in range(2):
        assert not replica.out
        breaker.failed(breaker.begin(NOW), NOW)
    assert replica.out
    assert breaker.back_at() == pytest.approx(NOW + 7)
    breaker.answered(breaker.begin(NOW + 7), NOW + 7)
    assert not replica.out
    assert replica.ramp(NOW + 7) == pytest.approx(0.1)
    assert replica.ramp(NOW + 17) == pytest.approx(0.55)
    assert replica.ramp(NOW + 27) == 1.0


def test_one_refusal_puts_a_key_out_for_as_long_as_a_replica_would_be_and_longer_each_time() -> None:
    key = upstream(breaker={"failures": 50, "ejection": 7, "max_ejection": 16}).key
    now = NOW
    for seconds in (7, 14, 16, 16):
        assert key.failed(key.begin(now), now)
        assert not key.closed
        back_at = key.back_at()
        assert back_at == pytest.approx(now + seconds)
        assert back_at is not None
        now = back_at
        assert key.awaits_probe(now)


def test_a_key_is_not_put_out_by_anything_but_a_refusal() -> None:
    key = upstream(breaker={"volume": 1, "served": 1}).key
    for _ in range(1000):
        key.abandoned(key.begin(NOW))
        key.served(key.begin(NOW), NOW)
    assert key.closed


def test_an_upstreams_key_goes_there_and_nowhere_else() -> None:
    fleet, *_ = described({"a": {**URLS["a"], "api_key": "sk-a"}, "b": URLS["b"]})
    sent: dict[str, list[bytes]] = {}
    for name, one in fleet.upstreams.items():
        destination = one.replicas[0].endpoint.destination("chat", "m", stream=True)
        assert destination is not None
        sent[name] = [value for field, value in destination.headers if field == b"authorization"]
    assert sent == {"a": [b"Bearer sk-a"], "b": []}


async def test_each_upstream_has_connections_of_its_own_unless_one_way_out_is_given() -> None:
    fleet, _, asked = described(URLS)
    assert {one.transport for one in fleet.upstreams.values()} == {asked}

    settings = {"auth": {"required": False}, "models": {"*": {"targets": [to("a")]}}}
    upstreams = {name: {"kind": "openai", **given} for name, given in URLS.items()}
    fleet, _ = build_fleet(Settings.model_validate({**settings, "upstreams": upstreams}), None, Middle(), lambda: NOW)
    transports = {one.transport for one in fleet.upstreams.values()}
    assert len(transports) == 3
    assert all(isinstance(transport, Engine) for transport in transports)
    await fleet.aclose()


# What goes on beside.


def kinds(watchers: list[Watcher]) -> list[type]:
    return [type(watcher) for watcher in watchers]


def test_nothing_goes_on_beside_unless_it_is_asked_for_because_asking_may_cost() -> None:
    _, watchers, _ = described(URLS)
    assert watchers == []


def test_each_upstream_has_the_watchers_that_its_settings_ask_for() -> None:
    _, watchers, _ = described(
        {
            "a": URLS["a"],
            "b": {**URLS["b"], "health": {"enabled": True}},
            "c": {**URLS["c"], "discovery": "dns"},
            "d": {"url": "http://d:8000/v1", "discovery": "dns", "health": {"enabled": True}},
        }
    )
    assert kinds(watchers) == [HealthChecks, Discovery, Discovery, HealthChecks]


@pytest.mark.parametrize(
    ("health", "found"), [({}, [HealthChecks]), ({"enabled": False}, []), ({"enabled": True}, [HealthChecks])]
)
def test_a_kind_that_costs_nothing_to_ask_is_asked_unless_it_is_said_not_to(
    health: Given, found: list[type], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Free(OpenAI):
        checked = True

    monkeypatch.setitem(DIALECTS, "openai", Free)
    _, watchers, _ = described({"a": {**URLS["a"], "health": health}})
    assert kinds(watchers) == found


@pytest.mark.parametrize(
    ("health", "url"),
    [
        ({}, "http://up:8000/base/v1/models"),
        ({"path": "/health"}, "http://up:8000/health"),
        ({"path": "/ready?full=1"}, "http://up:8000/ready?full=1"),
    ],
)
async def test_a_replica_is_asked_at_the_path_that_is_said_or_else_for_its_models(health: Given, url: str) -> None:
    given = {"url": "http://up:8000/base/v1", "api_key": "sk-up", "health": {"enabled": True, **health}}
    fleet, (watcher,), asked = described({"up": given})
    assert isinstance(watcher, HealthChecks)
    assert await watcher.check(fleet.upstreams["up"].replicas[0])
    (request,) = asked.requests
    assert (request.method, str(request.url)) == ("GET", url)
    assert request.headers["authorization"] == "Bearer sk-up"


async def test_checks_go_by_their_settings_and_to_their_own_upstream() -> None:
    fleet, (watcher,), _ = described({"a": URLS["a"], "b": {**URLS["b"], "health": {"enabled": True, "failures": 3}}})
    assert isinstance(watcher, HealthChecks)
    a, b = fleet.upstreams.values()
    b.transport = Asked(status=503)
    for _ in range(3):
        assert b.replicas[0].healthy
        await watcher.check(b.replicas[0])
    assert not b.replicas[0].healthy
    assert a.replicas[0].healthy


async def test_every_address_of_a_name_is_a_replica_made_as_the_settings_say() -> None:
    given = {
        "url": "http://localhost:8123/base",
        "discovery": "dns",
        "api_key": "sk-up",
        "breaker": {"failures": 1},
    }
    fleet, (watcher,), _ = described({"up": given})
    made = fleet.upstreams["up"]
    assert [replica.name for replica in made.replicas] == ["localhost:8123"]
    assert isinstance(watcher, Discovery)
    await watcher.refresh()
    found = {replica.name: replica for replica in made.replicas}
    replica = found["127.0.0.1:8123"]
    destination = replica.endpoint.destination("embeddings", "m", stream=False)
    assert destination is not None
    assert str(destination.url) == "http://localhost:8123/base/embeddings"
    assert destination.address == "127.0.0.1"
    assert (b"authorization", b"Bearer sk-up") in destination.headers
    assert replica.breaker.failed(replica.breaker.begin(NOW), NOW)


# How it stands.


def test_how_a_fleet_stands_is_told_of_each_upstream_and_of_each_replica() -> None:
    fleet, *_ = described(
        {"a": {"urls": [f"http://{name}:1/v1" for name in "pqrst"]}, "b": URLS["b"]}, retry={"reserve": 4}
    )
    a, b = fleet.upstreams.values()
    busy, cooling, ejected, probing, unhealthy = a.replicas
    busy.inflight = 2
    cooling.cool("m", NOW + 1, NOW)
    for one, at in ((ejected, NOW), (probing, NOW - 40)):
        for _ in range(5):
            one.breaker.failed(one.breaker.begin(at), at)
    unhealthy.healthy = False
    b.key.failed(b.key.begin(NOW), NOW)
    b.budget.withdraw(NOW)

    told = list(readings(fleet, NOW))

    assert told == [
        UpstreamReading(
            "a",
            [
                ReplicaReading("p:1", "available", 2),
                ReplicaReading("q:1", "cooling", 0),
                ReplicaReading("r:1", "ejected", 0),
                ReplicaReading("s:1", "probing", 0),
                ReplicaReading("t:1", "unhealthy", 0),
            ],
            queued=0,
            budget=4.0,
            panics=True,
            key_refused=False,
        ),
        UpstreamReading(
            "b", [ReplicaReading("b:8000", "available", 0)], queued=0, budget=3.0, panics=False, key_refused=True
        ),
    ]


def test_a_call_that_ends_by_a_refused_key_puts_the_key_out_and_not_the_replica() -> None:
    made = upstream()
    (replica,) = made.replicas
    replica.inflight += 1
    Lease(made, replica, "m", NOW, learns=True).settle(UpstreamUnauthorized("No."), NOW)
    assert not made.key.closed
    assert replica.breaker.closed
    assert replica.inflight == 0
