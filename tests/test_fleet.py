"""Where calls go and what is learnt of it: which route a name finds, who is given a call, who is out, what is given back."""

import asyncio
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence

import httpx
import pytest
from structlog.testing import capture_logs

from gateway import errors
from gateway.admission import ConcurrencySettings
from gateway.call import Aim
from gateway.dialects import DIALECTS
from gateway.errors import GatewayError
from gateway.fleet import Endpoint, Fleet, Lease, Replica, Route, Rules, Standing, Target, Timeouts, Upstream, by_weight
from gateway.policy.balance import LeastLoad
from gateway.policy.breaker import Breaker, BreakerSettings
from gateway.policy.retry import RetrySettings
from gateway.tasks import spawn
from tests.support.clock import virtual_time

anyio_backend = virtual_time

DIALECT = DIALECTS["openai"]()
OUT = 30.0  # seconds of a first ejection
NOW = 1000.0


def middle() -> float:
    return 0.5


def refuse(_: httpx.Request) -> httpx.Response:
    raise AssertionError("nothing is sent here")


class Transport(httpx.MockTransport):
    """Counts how often it is closed."""

    def __init__(self) -> None:
        super().__init__(refuse)
        self.closed = 0

    async def aclose(self) -> None:
        self.closed += 1


def replica(url: str = "http://up-0:8000/v1", *, weight: float = 1.0, failures: int = 1) -> Replica:
    """One that is ejected by its first failure, unless `failures` says otherwise."""
    breaker = Breaker(BreakerSettings(failures=failures, ejection=OUT, jitter=0.0), middle)
    return Replica(Endpoint(url, DIALECT, []), breaker, lambda: NOW, 30.0, weight)


def upstream(
    name: str = "up",
    replicas: int = 1,
    timeouts: Timeouts | None = None,
    retry: RetrySettings | None = None,
    concurrency: ConcurrencySettings | None = None,
    failures: int = 1,
) -> Upstream:
    made = [replica(f"http://{name}-{number}:8000/v1", failures=failures) for number in range(replicas)]
    key = Breaker(BreakerSettings(failures=1, ejection=OUT, jitter=0.0), middle)
    rules = Rules(
        timeouts or Timeouts(), retry or RetrySettings(), concurrency or ConcurrencySettings(), LeastLoad(), key
    )
    return Upstream(name, DIALECT, made, Transport(), rules)


def begin(at: Upstream, number: int = 0, now: float = NOW, *, model: str = "m", learns: bool = True) -> Lease:
    """A call at one of its replicas."""
    chosen = at.replicas[number]
    chosen.inflight += 1
    return Lease(at, chosen, model, now, learns=learns)


def end(at: Upstream, number: int, error: GatewayError | None, now: float = NOW) -> None:
    """A whole call, with what came of it."""
    lease = begin(at, number, now)
    if error is None:
        lease.answered(now)
    lease.settle(error, now)


def eject(at: Upstream, *numbers: int, now: float = NOW) -> None:
    for number in numbers:
        end(at, number, errors.UpstreamError("x"), now)


def numbers_of(at: Upstream, chosen: Sequence[Replica | None]) -> set[int | None]:
    return {None if one is None else list(at.replicas).index(one) for one in chosen}


def chosen_of(at: Upstream, now: float = NOW, tried: Sequence[int] = (), model: str = "m") -> set[int | None]:
    """All that may be given a call, by their numbers."""
    chance = random.Random(1).random
    left_out = [at.replicas[number] for number in tried]
    return numbers_of(at, [at.choose(model, now, chance, left_out) for _ in range(100)])


# Routes.


def fleet(*names: str) -> Fleet:
    only = upstream()
    return Fleet({"up": only}, [Route(name, [Target(only)]) for name in names])


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


def test_targets_are_chosen_by_weight_and_one_without_weight_never_is() -> None:
    heavy, light, never = (Target(upstream(name), None, weight) for name, weight in (("h", 3), ("l", 1), ("n", 0)))
    rng = random.Random(1)
    route = Route("chat", [heavy, light, never])
    assert route.targets == [heavy, light, never]
    assert route.stages == [[heavy, light]]
    chosen = Counter(by_weight(route.stages[0], rng).upstream.name for _ in range(8000))
    assert 2.7 < chosen["h"] / chosen["l"] < 3.3


def test_one_target_needs_no_chance() -> None:
    only = Target(upstream())
    rng = random.Random(1)
    before = rng.getstate()
    assert by_weight([only], rng) is only
    assert rng.getstate() == before


def shape(route: Route) -> list[list[tuple[str, str | None, float]]]:
    return [[(to.upstream.name, to.model, to.weight) for to in stage] for stage in route.stages]


def test_a_fallback_is_tried_as_if_it_had_been_asked_for_by_its_name() -> None:
    route = Route("chat", [Target(upstream("own"), "theirs")])
    pattern = Route(
        "gpt-*", [Target(upstream("a"), None, 3.0), Target(upstream("b"), "named"), Target(upstream("c"), None, 0)]
    )
    route.fall_back(pattern, "gpt-4o")
    assert shape(route) == [[("own", "theirs", 1.0)], [("a", "gpt-4o", 3.0), ("b", "named", 1.0)]]
    assert len(route.targets) == 1


def test_fallbacks_keep_their_order_and_their_own_fallbacks_are_not_followed() -> None:
    one, two, three = (Route(name, [Target(upstream(name))]) for name in ("one", "two", "three"))
    two.fall_back(three, "three")
    one.fall_back(two, "two")
    one.fall_back(three, "three")
    assert shape(one) == [[("one", None, 1.0)], [("two", "two", 1.0)], [("three", "three", 1.0)]]


# Endpoints.


@pytest.mark.parametrize(
    ("url", "address", "name"),
    [
        ("https://user:pass@api.example.com:8443/v1", None, "api.example.com:8443"),
        ("http://[::1]:8000", None, "[::1]:8000"),
        ("https://api.example.com/v1", None, "api.example.com"),
        ("http://vllm.models.svc:8000/v1", "10.0.0.7", "10.0.0.7:8000"),
        ("https://vllm.models.svc/v1", "10.0.0.7", "10.0.0.7"),
        ("http://vllm.models.svc/v1", "fd00::7", "[fd00::7]"),
    ],
)
def test_a_replica_is_named_by_where_it_is_and_nothing_that_is_secret(url: str, address: str | None, name: str) -> None:
    assert Endpoint(url, DIALECT, [("authorization", "Bearer sk-canary")], address).name == name


def test_an_endpoint_has_everything_about_its_requests_ready() -> None:
    endpoint = Endpoint("http://svc:8000/v1", DIALECT, [("authorization", "Bearer k")], "10.0.0.7")
    plain, stream = (endpoint.destination("chat", "m", stream=stream) for stream in (False, True))
    assert plain is not None
    assert stream is not None
    assert (plain.method, str(plain.url), plain.address) == ("POST", "http://svc:8000/v1/chat/completions", "10.0.0.7")
    assert (b"accept", b"application/json") in plain.headers
    assert (b"accept", b"text/event-stream") in stream.headers
    assert endpoint.destination("chat", "m", stream=True) is stream
    for asked in (plain, stream, endpoint.models(), endpoint.health(None)):
        assert asked is not None
        assert (b"authorization", b"Bearer k") in asked.headers
        assert (b"user-agent", b"gateway") in asked.headers


@pytest.mark.parametrize(("address", "name"), [(None, "svc:8000"), ("10.0.0.7", "")])
def test_a_trace_is_told_of_the_configured_host_and_of_no_address_that_was_looked_up(
    address: str | None, name: str
) -> None:
    at = upstream()
    at.replicas = [Replica(Endpoint("http://svc:8000/v1", DIALECT, [], address), at.key, lambda: NOW, 30.0)]
    assert begin(at).aim == Aim("up", "openai", "m", "svc", 8000, name)


def test_what_is_kept_of_requests_does_not_grow_with_the_names_that_callers_think_of() -> None:
    endpoint = Endpoint("http://svc:8000/v1", DIALECT, [])
    for number in range(3000):
        assert endpoint.destination("chat", f"m-{number}", stream=False) is not None
        assert endpoint.destination("chat", "m" * 300 + str(number), stream=False) is not None
    assert len(endpoint._destinations) <= 1000
    assert all(len(model) < 300 for _, model, _ in endpoint._destinations)


@pytest.mark.parametrize(("path", "url"), [(None, "http://svc:8000/v1/models"), ("/health", "http://svc:8000/health")])
def test_how_it_is_is_asked_where_its_kind_is_asked_or_at_a_path_of_the_host(path: str | None, url: str) -> None:
    asked = Endpoint("http://svc:8000/v1", DIALECT, []).health(path)
    assert (asked.method, str(asked.url)) == ("GET", url)


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


# How a replica stands.


@pytest.mark.parametrize(
    ("failed_at", "probe_at", "cools_until", "healthy", "standing", "fit"),
    [
        (None, None, None, True, Standing.AVAILABLE, True),
        (None, None, NOW + 1, True, Standing.COOLING, False),
        (None, None, NOW, True, Standing.AVAILABLE, True),
        (NOW, None, None, True, Standing.EJECTED, False),
        (NOW, None, NOW + 1, True, Standing.EJECTED, False),
        (NOW - OUT, None, None, True, Standing.PROBING, False),
        (NOW - 2 * OUT, NOW - 1, None, True, Standing.PROBING, False),
        (None, None, None, False, Standing.UNHEALTHY, False),
        (NOW, None, NOW + 1, False, Standing.UNHEALTHY, False),
    ],
)
def test_what_is_wrong_with_a_replica_is_told_by_the_worst_of_it(
    failed_at: float | None,
    probe_at: float | None,
    cools_until: float | None,
    healthy: bool,
    standing: Standing,
    fit: bool,
) -> None:
    made = replica()
    if failed_at is not None:
        made.breaker.failed(made.breaker.begin(failed_at), failed_at)
    if probe_at is not None:
        made.breaker.begin(probe_at)
    if cools_until is not None:
        made.cool("m", cools_until, NOW - 1)
    made.healthy = healthy
    assert made.standing(NOW) is standing
    assert made.standing(NOW, "m") is standing
    assert made.fit("m", NOW) is fit
    assert made.out is (standing not in (Standing.AVAILABLE, Standing.COOLING))


def test_a_replica_cools_for_the_model_that_was_too_much_and_for_no_other() -> None:
    made = replica()
    made.cool("big", NOW + 5, NOW)
    assert not made.fit("big", NOW)
    assert made.fit("small", NOW)
    assert made.standing(NOW) is Standing.COOLING
    assert made.standing(NOW, "small") is Standing.AVAILABLE
    assert made.fit("big", NOW + 5)


def test_a_later_word_about_cooling_never_makes_it_shorter() -> None:
    made = replica()
    made.cool("m", NOW + 5, NOW)
    made.cool("m", NOW + 1, NOW)
    assert not made.fit("m", NOW + 4.9)


def test_models_that_callers_make_up_do_not_fill_the_memory() -> None:
    made = replica()
    for number in range(3000):
        made.cool(f"old-{number}", NOW + 1, NOW)
    assert len(made.cooling) == 1000
    made.cool("new", NOW + 9, NOW + 2)
    assert made.cooling == {"new": NOW + 9}


def test_a_replica_that_comes_back_gets_its_share_little_by_little() -> None:
    made = replica()
    assert made.ramp(NOW) == 1.0
    made.breaker.failed(made.breaker.begin(NOW - OUT), NOW - OUT)
    made.breaker.answered(made.breaker.begin(NOW), NOW)
    assert [round(made.ramp(NOW + after), 3) for after in (0, 15, 30, 60)] == [0.1, 0.55, 1.0, 1.0]


def test_one_that_its_health_check_finds_well_again_does_too_and_the_later_return_counts() -> None:
    made = replica()
    made.healthy = True
    assert made.ramp(NOW) == 1.0  # it was never found ill
    made.healthy = False
    made.healthy = True
    made.healthy = True
    assert made.ramp(NOW) == 0.1
    assert made.ramp(NOW + 30) == 1.0
    made.breaker.failed(made.breaker.begin(NOW), NOW)
    back = NOW + OUT + 20
    made.breaker.answered(made.breaker.begin(back), back)
    assert made.ramp(back) == 0.1


# Who is given a call.


def test_the_replica_with_the_fewest_calls_is_taken_and_ties_are_broken_by_chance() -> None:
    many = upstream(replicas=4)
    chance = random.Random(1).random
    for number, inflight in enumerate((5, 5, 0, 5)):
        many.replicas[number].inflight = inflight
    taken = Counter(many.choose("m", NOW, chance) for _ in range(400))
    # two are looked at, so that the idle one is taken whenever it is one of them
    assert taken.most_common(1)[0][0] is many.replicas[2]
    assert 150 < taken[many.replicas[2]] < 250

    for each in many.replicas:
        each.inflight = 0
    first = Counter(many.choose("m", NOW, chance) for _ in range(400))
    assert len(first) == 4
    assert min(first.values()) > 60


def test_nobody_is_given_more_calls_than_it_may_have_nor_what_it_has_failed_at() -> None:
    three = upstream(replicas=3, concurrency=ConcurrencySettings(limit=2))
    three.replicas[0].inflight = 2
    assert three.is_full(three.replicas[0])
    assert chosen_of(three) == {1, 2}
    assert chosen_of(three, tried=[1]) == {2}
    assert chosen_of(three, tried=[1, 2]) == {None}


def test_who_is_out_or_cools_is_passed_over() -> None:
    four = upstream(replicas=4)
    eject(four, 0)
    four.replicas[1].cool("m", NOW + 9, NOW)
    assert chosen_of(four) == {2, 3}
    assert chosen_of(four, model="other") == {1, 2, 3}
    assert chosen_of(four, tried=[2, 3]) == {None}


@pytest.mark.parametrize(
    ("replicas", "out", "panics"),
    [
        (1, 0, False),
        (1, 1, True),
        (2, 1, False),
        (2, 2, True),
        (3, 1, False),
        (3, 2, True),
        (4, 2, False),
        (4, 3, True),
    ],
)
def test_it_panics_when_over_half_are_out(replicas: int, out: int, panics: bool) -> None:
    made = upstream(replicas=replicas)
    eject(made, *range(out))
    assert made.panics is panics


def test_one_that_its_health_check_finds_ill_is_out_and_one_that_cools_is_not() -> None:
    two = upstream(replicas=2)
    for each in two.replicas:
        each.cool("m", NOW + 9, NOW)
    assert not two.panics
    for each in two.replicas:
        each.healthy = False
    assert two.panics


def test_in_a_panic_all_are_used_because_the_rest_could_not_bear_it() -> None:
    four = upstream(replicas=4)
    eject(four, 0, 1)
    assert chosen_of(four) == {2, 3}
    four.replicas[2].healthy = False
    assert chosen_of(four) == {0, 1, 2, 3}
    four.replicas[0].cool("m", NOW + 9, NOW)
    assert chosen_of(four) == {1, 2, 3}  # to whom it was too much it would still be too much


def test_an_upstream_of_which_all_are_out_leaves_the_call_to_others() -> None:
    two = upstream(replicas=2)
    eject(two, 0, 1)
    assert two.panics
    assert chosen_of(two) == {None}


def test_one_whose_time_is_over_gets_the_next_call_and_only_that_one() -> None:
    three = upstream(replicas=3)
    eject(three, 1)
    assert chosen_of(three, NOW + OUT - 0.001) == {0, 2}
    assert chosen_of(three, NOW + OUT) == {1}
    assert chosen_of(three, NOW + OUT, tried=[1]) == {0, 2}
    probe = begin(three, 1, NOW + OUT)
    assert chosen_of(three, NOW + OUT) == {0, 2}
    probe.settle(errors.CallerLeft("x"), NOW + OUT)  # nothing was learnt
    assert chosen_of(three, NOW + OUT) == {1}
    end(three, 1, None, NOW + OUT)
    assert chosen_of(three, NOW + OUT + 30) == {0, 1, 2}


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_an_upstream_of_which_all_are_out_is_probed_although_others_would_do(replicas: int) -> None:
    made = upstream(replicas=replicas)
    eject(made, *range(replicas))
    assert chosen_of(made, NOW + OUT - 0.001) == {None}
    assert chosen_of(made, NOW + OUT) == {0}
    begin(made, 0, NOW + OUT)
    assert chosen_of(made, NOW + OUT) == ({1} if replicas > 1 else {None})


def test_a_probe_waits_until_the_budget_could_mend_its_failure() -> None:
    two = upstream(replicas=2, retry=RetrySettings(budget=0.5, reserve=0))
    eject(two, 1)
    assert chosen_of(two, NOW + OUT) == {0}
    two.budget.deposit(NOW + OUT)
    two.budget.deposit(NOW + OUT)
    assert chosen_of(two, NOW + OUT) == {1}


def test_where_nothing_is_ever_tried_again_a_probe_waits_for_nothing() -> None:
    two = upstream(replicas=2, retry=RetrySettings(budget=0, reserve=0))
    eject(two, 1)
    assert chosen_of(two, NOW + OUT) == {1}


@pytest.mark.parametrize("ill", [True, False])
def test_what_its_health_check_finds_ill_or_what_cools_is_not_probed(ill: bool) -> None:
    three = upstream(replicas=3)
    eject(three, 1)
    if ill:
        three.replicas[1].healthy = False
    else:
        three.replicas[1].cool("m", NOW + 2 * OUT, NOW)
    assert chosen_of(three, NOW + OUT) == {0, 2}


# What a call brings back.


def classes(base: type[GatewayError]) -> Iterator[type[GatewayError]]:
    yield base
    for class_ in base.__subclasses__():
        yield from classes(class_)


EJECTS = (
    errors.Internal,
    errors.UpstreamUnreachable,
    errors.UpstreamTimeout,
    errors.UpstreamBroken,
    errors.UpstreamUnavailable,
)
COOLS = (errors.UpstreamThrottled, errors.UpstreamOverloaded)
REFUSES_THE_KEY = (errors.UpstreamUnauthorized, errors.UpstreamQuota)
BASES = (errors.GatewayError, errors.UpstreamError)  # what says no more is taken for the worst


def made(class_: type[GatewayError]) -> GatewayError:
    error = class_.__new__(class_)
    if isinstance(error, errors.UpstreamThrottled):
        error.retry_after = None
    return error


@pytest.mark.parametrize("class_", list(classes(GatewayError)), ids=lambda class_: class_.__name__)
def test_how_a_call_ended_is_a_verdict_on_its_replica_on_the_key_or_on_neither(class_: type[GatewayError]) -> None:
    at = upstream()
    (only,) = at.replicas
    end(at, 0, made(class_))
    assert only.breaker.closed is (class_ not in EJECTS + BASES)
    assert at.key.closed is (class_ not in REFUSES_THE_KEY)
    assert bool(only.cooling) is (class_ in COOLS)
    assert only.inflight == 0


def test_what_callers_do_never_ejects_however_often_they_do_it() -> None:
    at = upstream()
    harmless = [class_ for class_ in classes(GatewayError) if class_ not in EJECTS + BASES + REFUSES_THE_KEY + COOLS]
    for class_ in harmless * 100:
        end(at, 0, made(class_))
    assert at.replicas[0].standing(NOW) is Standing.AVAILABLE


@pytest.mark.parametrize(
    ("again", "seconds"), [(None, 1.0), (0.0, 0.0), (0.5, 0.5), (7.0, 7.0), (120.0, 120.0), (86_400.0, 120.0)]
)
def test_a_throttle_cools_for_as_long_as_it_says_up_to_two_minutes(again: float | None, seconds: float) -> None:
    at = upstream()
    end(at, 0, errors.UpstreamThrottled("x", retry_after=again))
    (only,) = at.replicas
    assert only.cooling["m"] == NOW + seconds
    assert only.fit("m", NOW + seconds)
    assert only.fit("m", NOW + seconds / 2) is (seconds == 0)


def test_one_refusal_takes_the_key_out_for_all_replicas_and_one_answer_brings_it_back() -> None:
    at = upstream(replicas=2)
    with capture_logs() as logs:
        end(at, 0, errors.UpstreamUnauthorized("x"))
        end(at, 1, errors.UpstreamUnauthorized("x"))
        assert not at.key.closed
        end(at, 1, None, NOW + 1)
        assert not at.key.closed  # its end is heard only once the key's time is over
        end(at, 1, errors.UpstreamError("x"), NOW + OUT)
        assert at.key.awaits_probe(NOW + OUT)  # that said nothing of the key
        end(at, 0, None, NOW + OUT)
    assert at.key.closed
    assert [entry["event"] for entry in logs] == ["key_refused", "replica_ejected", "key_accepted"]
    assert logs[0] == {"event": "key_refused", "log_level": "error", "upstream": "up", "reason": "upstream_auth"}


def test_an_ejection_and_the_return_are_each_logged_once_with_the_reason() -> None:
    at = upstream(failures=2)
    with capture_logs() as logs:
        for _ in range(5):
            end(at, 0, errors.UpstreamTimeout("x", code="upstream_first_byte_timeout"))
        end(at, 0, None, NOW + OUT)
        end(at, 0, None, NOW + OUT)
    assert [dict(entry) for entry in logs] == [
        {
            "event": "replica_ejected",
            "log_level": "warning",
            "upstream": "up",
            "replica": "up-0:8000",
            "reason": "upstream_first_byte_timeout",
        },
        {"event": "replica_returned", "log_level": "info", "upstream": "up", "replica": "up-0:8000"},
    ]


def test_a_probe_brings_its_replica_back_with_its_first_event_and_not_only_at_its_end() -> None:
    at = upstream()
    eject(at, 0)
    probe = begin(at, 0, NOW + OUT)
    probe.answered(NOW + OUT + 2)
    assert at.replicas[0].standing(NOW + OUT + 2) is Standing.AVAILABLE


def test_a_probe_that_fails_ejects_again_and_for_longer() -> None:
    at = upstream()
    eject(at, 0)
    eject(at, 0, now=NOW + OUT)
    assert at.replicas[0].standing(NOW + 3 * OUT - 0.01) is Standing.EJECTED
    assert at.replicas[0].standing(NOW + 3 * OUT) is Standing.PROBING


def test_a_call_that_began_before_an_ejection_says_nothing_after_the_return() -> None:
    at = upstream()
    old, older = begin(at), begin(at)
    eject(at, 0)
    old.settle(None, NOW + 1)
    assert at.replicas[0].standing(NOW + 1) is Standing.EJECTED
    end(at, 0, None, NOW + OUT)
    older.settle(errors.UpstreamError("x"), NOW + OUT + 1)
    assert at.replicas[0].standing(NOW + OUT + 1) is Standing.AVAILABLE


def test_a_call_to_what_is_out_says_nothing_either() -> None:
    at = upstream()
    eject(at, 0)
    end(at, 0, None, NOW + 1)
    assert at.replicas[0].standing(NOW + 1) is Standing.EJECTED
    for _ in range(10):
        end(at, 0, errors.UpstreamError("x"), NOW + 1)
    assert at.replicas[0].standing(NOW + OUT) is Standing.PROBING


def test_a_lease_is_settled_once_however_often_it_is_settled() -> None:
    at = upstream(failures=2)
    kept, settled = begin(at), begin(at)
    assert [settled.settle(errors.UpstreamError("x"), NOW) for _ in range(3)] == [True, False, False]
    assert at.replicas[0].inflight == 1
    assert at.replicas[0].breaker.closed
    assert kept.settle(None, NOW)
    assert at.replicas[0].inflight == 0


def test_how_quick_a_replica_is_is_learnt_where_its_first_byte_says_so() -> None:
    at = upstream(replicas=2)
    for number, learns in enumerate((True, False)):
        lease = begin(at, number, learns=learns)
        lease.answered(NOW + 0.25)
        lease.settle(None, NOW + 9)
    assert [each.latency.cost for each in at.replicas] == [0.25, 0.0]


@pytest.mark.parametrize(
    ("error", "learns", "cost"),
    [
        (errors.UpstreamTimeout("x"), True, 5.0),
        (errors.CallerLeft("x"), True, 5.0),
        (errors.DeadlinePassed(), True, 5.0),
        (errors.UpstreamTimeout("x"), False, 0.0),
        (errors.UpstreamError("x"), True, 0.0),
        (errors.UpstreamThrottled("x"), True, 0.0),
    ],
)
def test_who_was_waited_for_in_vain_has_been_at_least_that_slow(error: GatewayError, learns: bool, cost: float) -> None:
    at = upstream()
    begin(at, learns=learns).settle(error, NOW + 5)
    assert at.replicas[0].latency.cost == cost


def test_a_wait_in_vain_that_was_shorter_than_usual_says_nothing() -> None:
    at = upstream()
    at.replicas[0].latency.observe(9.0, NOW + 1)
    begin(at).settle(errors.CallerLeft("x"), NOW + 1)
    assert at.replicas[0].latency.cost == 9.0


def test_what_breaks_after_it_has_begun_makes_nobody_slower() -> None:
    at = upstream()
    lease = begin(at)
    lease.answered(NOW + 0.1)
    lease.settle(errors.UpstreamTimeout("x"), NOW + 100)
    assert at.replicas[0].latency.cost == pytest.approx(0.1)


# Places.


async def test_a_place_that_is_given_back_goes_to_whoever_has_waited_longest() -> None:
    at = upstream(concurrency=ConcurrencySettings(limit=1, queue=5, wait=100))
    holder = begin(at)
    (only,) = at.replicas
    first, second = (spawn(at.queue.turn(math.inf), name=name) for name in ("first", "second"))
    await _turns(at, 2)
    holder.settle(None, NOW)
    assert await first is only
    assert (only.inflight, len(at.queue)) == (1, 1)
    at.release(only)
    assert await second is only
    at.release(only)
    assert only.inflight == 0


async def test_whoever_waits_for_a_place_is_given_it_only_when_what_came_of_the_last_call_is_known() -> None:
    at = upstream(concurrency=ConcurrencySettings(limit=1, queue=5, wait=100))
    holder = begin(at)
    found: list[bool] = []

    def look(at_replica: Replica) -> bool:
        found.append(at_replica.out)
        return not at_replica.out

    waiting = spawn(at.queue.turn(math.inf, look), name="waiting")
    await _turns(at, 1)
    holder.settle(errors.UpstreamError("x"), NOW)
    assert found == [True]
    assert (at.replicas[0].inflight, len(at.queue)) == (0, 1)
    end(at, 0, None, NOW + OUT)  # its probe, which brings it back
    assert await waiting is at.replicas[0]
    assert at.replicas[0].inflight == 1


async def test_new_replicas_are_there_for_those_who_wait_and_old_ones_for_nobody() -> None:
    at = upstream(concurrency=ConcurrencySettings(limit=1, queue=5, wait=100))
    holder = begin(at)
    (old,) = at.replicas
    waiting = [spawn(at.queue.turn(math.inf), name="waiting") for _ in range(3)]
    await _turns(at, 3)
    new = [replica(f"http://new-{number}:8000") for number in range(2)]
    at.replace(new)
    assert [await one for one in waiting[:2]] == new
    assert [one.inflight for one in new] == [1, 1]
    holder.settle(None, NOW)
    assert old.inflight == 0
    assert not waiting[2].done()
    at.release(new[0])
    assert await waiting[2] is new[0]


def test_replicas_that_stay_keep_what_is_known_of_them() -> None:
    at = upstream(replicas=2)
    stays, goes = at.replicas
    eject(at, 0)
    lease = begin(at, 1)
    at.replace([stays, replica("http://new:8000")])
    assert stays.standing(NOW) is Standing.EJECTED
    assert chosen_of(at) == {1}
    lease.settle(None, NOW)
    assert goes.inflight == 0


async def _turns(at: Upstream, number: int) -> None:
    while len(at.queue) < number:
        await asyncio.sleep(0)
