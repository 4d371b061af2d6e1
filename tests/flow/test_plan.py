"""Where a call goes, and where it goes after a failure: tables of fleets that stand in all sorts of ways, and any of them."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import httpx
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from gateway.admission import ConcurrencySettings, Queue
from gateway.call import Call, Exchange
from gateway.dialects import DIALECTS
from gateway.errors import UpstreamError
from gateway.fleet import Endpoint, Replica, Route, Rules, Target, Timeouts, Upstream
from gateway.flow.dispatch import Dispatch
from gateway.flow.plan import Place, Plan
from gateway.outcome import Again
from gateway.policy.balance import LeastLoad
from gateway.policy.breaker import Breaker, BreakerSettings
from gateway.policy.retry import RetrySettings
from gateway.tasks import spawn

NOW = 1000.0
LIMIT = 2
RESERVE = 10
ONCE = BreakerSettings(failures=1, ejection=30.0, jitter=0.0)

# What can be the matter with a replica, and with a key.


def ejected_at(at: float) -> Breaker:
    breaker = Breaker(ONCE, lambda: 0.5)
    breaker.failed(breaker.begin(at), at)
    return breaker


def closed() -> Breaker:
    return Breaker(ONCE, lambda: 0.5)


def probing(now: float) -> Breaker:
    """One call is under way to see whether it is well again."""
    breaker = ejected_at(now - 40)
    breaker.begin(now)
    return breaker


BREAKERS: dict[str, Callable[[float], Breaker]] = {
    "ejected": ejected_at,
    "awaiting": lambda now: ejected_at(now - 40),  # its time is over
    "probing": probing,
}
KEYS: dict[str, Callable[[float], Breaker]] = {**BREAKERS, "refused": ejected_at, "accepted": lambda _: closed()}
COOLING = {"cooling": {"m": 5.0, "x": 5.0, "y": 5.0}, "cooling-x": {"x": 60.0}}  # seconds, by model
MATTERS = ["well", "free", "full", "unhealthy", *BREAKERS, *COOLING]


def befall(one: Replica, matter: str, now: float = NOW) -> None:
    """From now on this is the matter with it, too."""
    if matter in BREAKERS:
        one.breaker = BREAKERS[matter](now)
    elif matter in COOLING:
        one.cooling.update({model: now + seconds for model, seconds in COOLING[matter].items()})
    elif matter in ("full", "free"):
        one.inflight = LIMIT if matter == "full" else 0
    elif matter == "unhealthy":
        one.healthy = False
    else:
        one.breaker, one.healthy = closed(), True
        one.cooling.clear()


def upstream(name: str, *replicas: str, key: str = "accepted", left: int | None = RESERVE) -> Upstream:
    """One with a replica for each word, which says what is the matter with it; several matters with a + between them.

    `left`: how many further attempts it pays for; None: retries are off.
    """
    retry = RetrySettings(budget=0, reserve=0 if left is None else RESERVE)
    rules = Rules(Timeouts(), retry, ConcurrencySettings(LIMIT), LeastLoad(), KEYS[key](NOW))
    transport = httpx.MockTransport(lambda _: httpx.Response(500))
    made = [replica(f"{name}{number}", matters) for number, matters in enumerate(replicas)]
    found = Upstream(name, DIALECTS["openai"](), made, transport, rules)
    for _ in range(0 if left is None else RESERVE - left):
        found.budget.withdraw(NOW)
    return found


def replica(name: str, matters: str = "well") -> Replica:
    made = Replica(Endpoint(f"http://{name}:8000/v1", DIALECTS["openai"](), []), closed(), lambda: NOW, 30.0)
    made.name = name
    for matter in matters.split("+"):
        befall(made, matter)
    return made


def route(*stages: Sequence[Target | Upstream]) -> Route:
    """Targets, and then the targets of each fallback."""
    first, *others = ([to if isinstance(to, Target) else Target(to) for to in stage] for stage in stages)
    made = Route("m", first)
    for targets in others:
        made.fall_back(Route("spare", targets), "m")
    return made


class Walk:
    """One call on its way, and where it has been."""

    def __init__(self, *stages: Sequence[Target | Upstream], seed: int = 1) -> None:
        self.plan = Plan(route(*stages), "m", random.Random(seed))
        self.now = NOW
        self.place = self.plan.first(self.now)

    def on(self, again: Again = Again.ANYWHERE) -> Place | None:
        """It has failed there. Where next?"""
        self.plan.failed(self.place, again)
        place = self.plan.next(self.place, self.now)
        if place is not None:
            self.place = place
        return place

    def names(self, times: int, again: Again = Again.ANYWHERE) -> list[str]:
        """Where it is and where it goes next, so many places; those where it has been are in brackets."""
        names = [name(self.place)]
        while len(names) < times:
            names.append(name(self.on(again)))
        return names


def name(place: Place | None) -> str:
    if place is None:
        return "nowhere"
    written = f"{place.upstream.name} queue" if place.replica is None else place.replica.name
    return f"({written})" if place.visited else written


def firsts(*stages: Sequence[Target | Upstream], calls: int = 40) -> set[str]:
    """Where calls begin."""
    return {name(Walk(*stages, seed=seed).place) for seed in range(calls)}


# In order.


def test_another_replica_comes_first_then_the_next_target_then_the_fallbacks_and_then_the_rest() -> None:
    for seed in range(20):
        a, b = upstream("a", *["well"] * 3), upstream("b", "well", "well")
        c, d = upstream("c", "well"), upstream("d", "well", "well")
        walk = Walk([a], [b], [c], [d], seed=seed)
        names = walk.names(9)
        assert [name[0] for name in names[:8]] == ["a", "a", "b", "b", "c", "d", "d", "a"]
        assert len(set(names[:8])) == 8
        assert names[8].startswith("(a")


def test_there_is_one_more_replica_of_an_upstream_and_not_two_while_there_is_another_upstream() -> None:
    for seed in range(20):
        walk = Walk([upstream("a", *["well"] * 4), upstream("b", *["well"] * 4)], seed=seed)
        names = [name[0] for name in walk.names(8)]
        one, other = names[0], names[2]
        assert names[:4] == [one, one, other, other]
        assert Counter(names) == {"a": 4, "b": 4}


def test_one_replica_alone_is_tried_again_and_it_is_said_that_it_is_the_same() -> None:
    assert Walk([upstream("a", "well")]).names(4) == ["a0", "(a0)", "(a0)", "(a0)"]


def test_a_call_begins_by_weight_and_never_where_the_weight_is_nothing() -> None:
    a, b, c = (upstream(name, "well") for name in "abc")
    rng = random.Random(1)
    way = route([Target(a, weight=3), Target(b, weight=1), Target(c, weight=0)])
    counted = Counter(name(Plan(way, "m", rng).first(NOW)) for _ in range(4000))
    assert set(counted) == {"a0", "b0"}
    assert 2.6 < counted["a0"] / counted["b0"] < 3.4


def test_the_next_target_is_by_weight_too() -> None:
    counted: Counter[str] = Counter()
    for seed in range(1500):
        a, b, c, d = (upstream(name, "well") for name in "abcd")
        walk = Walk([Target(a, weight=1000), Target(b, weight=3), Target(c, weight=1), Target(d, weight=0)], seed=seed)
        counted[walk.names(2)[1]] += 1
    assert set(counted) == {"a0", "b0", "c0"}
    assert 2.4 < counted["b0"] / counted["c0"] < 3.7


def test_a_target_without_weight_is_not_used_when_all_else_has_failed() -> None:
    a, b = upstream("a", "well"), upstream("b", "well")
    assert Walk([Target(a), Target(b, weight=0)]).names(3) == ["a0", "(a0)", "(a0)"]
    a = upstream("a", "ejected+full")
    assert Walk([Target(a), Target(b, weight=0)]).names(1) == ["a queue"]


def test_a_model_is_asked_for_by_the_name_that_each_upstream_knows() -> None:
    a, b, c = (upstream(name, "well") for name in "abc")
    plan = Plan(route([Target(a, "x")], [Target(b)], [Target(c, "y")]), "m-large", random.Random(1))
    place = plan.first(NOW)
    models = [place.model]
    for _ in range(2):
        plan.failed(place, Again.ELSEWHERE)
        following = plan.next(place, NOW)
        assert following is not None
        place = following
        models.append(place.model)
    assert models == ["x", "m", "y"]


def test_a_pattern_hands_on_the_name_that_the_caller_gave() -> None:
    assert Plan(route([upstream("a", "well")]), "gpt-4o", random.Random(1)).first(NOW).model == "gpt-4o"


def test_two_models_of_one_replica_are_two_places() -> None:
    a = upstream("a", "well")
    walk = Walk([Target(a, "x")], [Target(a, "y")])
    assert walk.names(3) == ["a0", "a0", "(a0)"]


def test_one_model_of_one_replica_is_one_place_however_often_it_is_named() -> None:
    a = upstream("a", "well")
    assert Walk([Target(a)], [Target(a)]).names(2) == ["a0", "(a0)"]


# By how it failed.


def test_what_would_fail_again_in_the_same_way_is_not_tried_again() -> None:
    assert Walk([upstream("a", "well")]).names(2, Again.ELSEWHERE) == ["a0", "nowhere"]
    names = Walk([upstream("a", "well", "well")], [upstream("b", "well")]).names(4, Again.ELSEWHERE)
    assert sorted(names[:2]) == ["a0", "a1"]
    assert names[2:] == ["b0", "nowhere"]


def test_what_would_fail_again_is_useless_for_another_model_too() -> None:
    a = upstream("a", "well")
    assert Walk([Target(a, "x")], [Target(a, "y")]).names(2, Again.ELSEWHERE) == ["a0", "nowhere"]


def refused(walk: Walk) -> Place | None:
    """It has failed there because our key was refused."""
    key = walk.place.upstream.key
    key.failed(key.begin(walk.now), walk.now)
    return walk.on(Again.OTHER_UPSTREAM)


def test_an_upstream_that_refuses_the_key_is_left_with_all_its_replicas() -> None:
    walk = Walk([upstream("a", *["well"] * 3)], [upstream("b", "well")])
    assert name(refused(walk)) == "b0"
    assert walk.names(3) == ["b0", "(b0)", "(b0)"]


def test_an_upstream_that_alone_refuses_the_key_leaves_nowhere_to_go() -> None:
    assert name(refused(Walk([upstream("a", *["well"] * 3)]))) == "nowhere"
    a = upstream("a", "well", "well")
    assert name(refused(Walk([Target(a, "x")], [Target(a, "y")]))) == "nowhere"


def test_an_upstream_that_has_refused_this_calls_key_is_left_whatever_other_calls_say_of_it() -> None:
    """The refusal was of a call from before the key was last out: it is ignored there, and not here."""
    a, b = upstream("a", "well", "well"), upstream("b", "well")
    assert Walk([a], [b]).names(2, Again.OTHER_UPSTREAM) == [Walk([a]).names(1)[0], "b0"]
    assert Walk([Target(a, "x")], [Target(a, "y")]).names(2, Again.OTHER_UPSTREAM)[1] == "nowhere"


@pytest.mark.parametrize(("key", "begins"), [("accepted", {"a0"}), ("refused", {"b0"}), ("probing", {"b0"})])
def test_an_upstream_whose_key_is_out_is_passed_over(key: str, begins: set[str]) -> None:
    assert firsts([upstream("a", "well", key=key)], [upstream("b", "well")]) == begins


def test_a_key_that_is_out_is_tried_by_one_call_when_its_time_is_over() -> None:
    a, b = upstream("a", "well", key="awaiting"), upstream("b", "well")
    assert firsts([a], [b]) == {"a0"}
    a.key.begin(NOW)
    assert firsts([a], [b]) == {"b0"}


def test_a_key_that_is_out_is_not_tried_where_nothing_would_pay_for_its_failure() -> None:
    b = upstream("b", "well")
    assert firsts([upstream("a", "well", key="awaiting", left=0)], [b]) == {"b0"}
    assert firsts([upstream("a", "well", key="awaiting", left=1)], [b]) == {"a0"}
    assert firsts([upstream("a", "well", key="awaiting", left=None)], [b]) == {"a0"}, "or it would be out for ever"


def test_a_key_that_is_out_is_used_when_there_is_nothing_else() -> None:
    assert firsts([upstream("a", "well", key="refused")]) == {"a0"}


# By how the fleet stands.

OUT = ["ejected", "unhealthy", "probing", "cooling", "ejected+unhealthy+cooling"]
NO_USE = [*OUT, "full"]


@pytest.mark.parametrize("matter", NO_USE)
def test_what_is_out_or_full_is_passed_over(matter: str) -> None:
    a, b, c = upstream("a", matter, "well", "well"), upstream("b", matter), upstream("c", "well")
    assert firsts([a]) == {"a1", "a2"}
    assert firsts([b, c]) == firsts([b], [c]) == {"c0"}
    for seed in range(10):
        assert Walk([a], [b], [c], seed=seed).names(3)[2] == "c0"


@pytest.mark.parametrize("matter", OUT)
def test_what_is_out_is_used_when_there_is_nothing_else(matter: str) -> None:
    assert firsts([upstream("a", matter)]) == {"a0"}
    assert firsts([upstream("a", matter)], [upstream("b", "full+ejected")]) == {"a0"}
    assert Walk([upstream("a", matter)]).names(2) == ["a0", "(a0)"]


@pytest.mark.parametrize("matter", OUT)
def test_what_is_out_is_used_when_all_else_is_of_no_use(matter: str) -> None:
    walk = Walk([upstream("a", "well", "well", matter)])
    assert walk.names(4, Again.ELSEWHERE)[2:] == ["a2", "nowhere"]


def test_where_it_has_failed_and_might_not_again_is_tried_before_what_is_out() -> None:
    walk = Walk([upstream("a", "well", "well", "ejected")])
    names = walk.names(8)
    assert sorted(names[:2]) == ["a0", "a1"]
    assert set(names[2:]) <= {"(a0)", "(a1)"}


def test_of_two_places_where_it_has_failed_the_one_that_is_not_out_by_now_is_tried_again() -> None:
    for matter in ("ejected", "cooling", "unhealthy"):
        a, b = upstream("a", "well"), upstream("b", "well")
        walk = Walk([a], [b])
        assert walk.names(2) == ["a0", "b0"]
        befall(a.replicas[0], matter)
        assert name(walk.on()) == "(b0)"


def test_of_two_places_that_have_to_cool_the_first_to_have_cooled_is_tried_again() -> None:
    a, b = upstream("a", "well"), upstream("b", "well")
    walk = Walk([a], [b])
    assert walk.names(2) == ["a0", "b0"]
    a.replicas[0].cool("m", NOW + 60, NOW)
    b.replicas[0].cool("m", NOW + 1, NOW)
    assert name(walk.on()) == "(b0)"


def test_of_places_that_are_out_one_that_only_cools_is_tried_first_and_one_without_a_key_last() -> None:
    a, b, c = upstream("a", "well", key="refused"), upstream("b", "ejected"), upstream("c", "cooling")
    assert firsts([a], [b], [c]) == {"c0"}
    assert Walk([a], [b], [c]).names(3, Again.ELSEWHERE) == ["c0", "b0", "a0"]


def test_to_cool_for_one_model_is_not_to_cool_for_another() -> None:
    a, b = upstream("a", "cooling-x"), upstream("b", "well")
    assert firsts([Target(a, "y")], [b]) == {"a0"}
    assert firsts([Target(a, "x")], [b]) == {"b0"}


def test_when_over_half_are_out_all_that_do_not_cool_are_used() -> None:
    assert firsts([upstream("a", "ejected", "unhealthy", "well", "cooling")]) == {"a2"}
    assert firsts([upstream("a", "ejected", "unhealthy", "ejected", "well", "cooling")]) == {"a0", "a1", "a2", "a3"}


def test_where_all_of_an_upstream_are_out_another_is_gone_to() -> None:
    assert firsts([upstream("a", "ejected", "unhealthy")], [upstream("b", "well")]) == {"b0"}


def test_how_the_fleet_stands_is_looked_at_after_each_failure_anew() -> None:
    a, b = upstream("a", "well", "well"), upstream("b", "well")
    walk = Walk([a], [b])
    for one in a.replicas:
        befall(one, "ejected")
    assert name(walk.on()) == "b0"
    for one in a.replicas:
        befall(one, "well")
    assert name(walk.on())[:2] in ("a0", "a1")


# Probes.


@pytest.mark.parametrize("others", [["well"], ["well", "well"], ["well", "cooling", "full"]])
def test_a_replica_whose_time_out_is_over_gets_the_next_call_and_no_other(others: list[str]) -> None:
    a = upstream("a", "awaiting", *others)
    assert firsts([a]) == {"a0"}
    a.replicas[0].breaker.begin(NOW)
    assert "a0" not in firsts([a])


@pytest.mark.parametrize("matter", ["awaiting", "awaiting+full", "ejected"])
def test_only_one_replica_is_probed_at_a_time_by_one_call(matter: str) -> None:
    a = upstream("a", matter, "awaiting", *["well"] * 3)
    (begins,) = firsts([a])
    assert begins == ("a0" if matter == "awaiting" else "a1")


@pytest.mark.parametrize("matter", ["awaiting+full", "awaiting+cooling", "awaiting+unhealthy", "probing", "ejected"])
def test_what_is_full_cooling_or_ill_is_not_probed(matter: str) -> None:
    assert firsts([upstream("a", matter, "well")]) == {"a1"}


def test_nothing_is_probed_where_nothing_would_pay_for_its_failure() -> None:
    assert firsts([upstream("a", "awaiting", "well", left=0)]) == {"a1"}
    assert firsts([upstream("a", "awaiting", left=0)], [upstream("b", "well")]) == {"b0"}
    assert firsts([upstream("a", "awaiting", "well", left=1)]) == {"a0"}


def test_where_retries_are_off_and_nothing_ever_pays_a_probe_is_made_all_the_same() -> None:
    assert firsts([upstream("a", "awaiting", "well", left=None)]) == {"a0"}


def test_a_call_that_has_failed_may_be_a_probe_but_not_where_it_has_been() -> None:
    a = upstream("a", "well", "well", "awaiting")
    a.replicas[2].inflight = LIMIT
    walk = Walk([a])
    a.replicas[2].inflight = 0
    assert name(walk.on()) == "a2"
    assert name(walk.on()) in ("a0", "a1")


@pytest.mark.parametrize("replicas", [["awaiting"], ["awaiting", "ejected"], ["unhealthy", "awaiting", "cooling"]])
def test_an_upstream_of_which_nothing_is_fit_is_probed_even_where_there_is_another(replicas: list[str]) -> None:
    """Or it would never come back for as long as the other serves."""
    a, b = upstream("a", *replicas), upstream("b", "well")
    (begins,) = firsts([a], [b])
    assert begins == f"a{replicas.index('awaiting')}"
    assert "b0" in firsts([b, a])
    assert begins in firsts([b, a])
    a.replicas[replicas.index("awaiting")].breaker.begin(NOW)
    assert firsts([a], [b]) == {"b0"}


# Full.


def test_a_replica_with_a_place_free_is_gone_to_before_a_queue_however_far_it_is() -> None:
    assert firsts([upstream("a", "full")], [upstream("b", "full")], [upstream("c", "full", "well")]) == {"c1"}


def test_where_all_that_are_fit_are_full_the_first_of_them_is_waited_for() -> None:
    assert firsts([upstream("a", "ejected")], [upstream("b", "cooling", "full")]) == {"b queue"}
    assert firsts([upstream("a", "full", key="refused")], [upstream("b", "full")]) == {"b queue"}


def test_where_all_are_full_and_out_it_is_the_queue_that_refuses() -> None:
    assert firsts([upstream("a", "full+ejected", "full+cooling")]) == {"a queue"}
    assert firsts([upstream("a", "full", key="refused")]) == {"a queue"}


def test_a_queue_for_what_is_of_no_use_to_this_call_is_not_stood_in() -> None:
    a, b = upstream("a", "well"), upstream("b", "ejected")
    walk = Walk([a], [b])
    befall(a.replicas[0], "full")
    assert name(walk.on(Again.ELSEWHERE)) == "b0"
    assert name(walk.on(Again.ELSEWHERE)) == "nowhere"


def test_to_wait_for_a_place_where_it_has_failed_is_to_go_to_the_same_place_again() -> None:
    a = upstream("a", "well")
    walk = Walk([a])
    befall(a.replicas[0], "full")
    assert name(walk.on()) == "(a0)", "or it would be asked again without a wait"


def test_where_it_has_failed_and_is_full_by_now_comes_after_what_is_free() -> None:
    a, b = upstream("a", "well"), upstream("b", "well")
    walk = Walk([a], [b])
    walk.on()
    befall(a.replicas[0], "full")
    assert name(walk.on()) == "(b0)"


def will_do(walk: Walk) -> list[str]:
    """The replicas on which a place helps the call that waits for one."""
    place = walk.place
    return [one.name for one in place.upstream.replicas if walk.plan.will_do(place, one, walk.now)]


def test_a_place_on_what_is_out_is_not_what_is_waited_for_unless_all_are_out() -> None:
    walk = Walk([upstream("a", *(f"{matter}+full" for matter in ["well", *OUT, "awaiting"]))])
    assert name(walk.place) == "a queue"
    assert will_do(walk) == ["a0"]
    walk = Walk([upstream("a", "ejected+full", "cooling+full")])
    assert will_do(walk) == ["a0", "a1"]


@pytest.mark.parametrize("again", [Again.ANYWHERE, Again.ELSEWHERE])
def test_a_place_where_it_has_failed_is_not_what_is_waited_for_while_there_are_others(again: Again) -> None:
    a = upstream("a", "well", "full", "full")
    walk = Walk([a])
    befall(a.replicas[0], "full")
    assert name(walk.on(again)) == "a queue"
    assert will_do(walk) == ["a1", "a2"]


def test_who_waits_where_it_has_failed_may_be_given_another_place_but_none_that_is_of_no_use() -> None:
    a = upstream("a", "well", "well", "ejected")
    walk = Walk([a])
    useless = walk.place.replica
    walk.on(Again.ELSEWHERE)
    for one in a.replicas:
        befall(one, "full")
    assert name(walk.on(Again.ANYWHERE)).startswith("(a")
    befall(a.replicas[2], "well")
    assert useless is not None
    assert sorted(will_do(walk)) == sorted({"a0", "a1", "a2"} - {useless.name})


def test_of_queues_one_with_room_in_it_is_stood_in() -> None:
    a, b = upstream("a", "full"), upstream("b", "full")
    assert firsts([a], [b]) == {"a queue"}
    a.queue = Queue(ConcurrencySettings(queue=0), a.release)
    assert firsts([a], [b]) == {"b queue"}
    b.queue = a.queue
    assert firsts([a], [b]) == {"a queue"}


# Beside a slow one.


def beside(*stages: Sequence[Target | Upstream], seed: int = 1) -> str:
    walk = Walk(*stages, seed=seed)
    found = walk.plan.beside(walk.place, NOW)
    assert found is None or found.replica is not walk.place.replica
    return name(found)


def test_a_second_attempt_goes_to_another_replica_or_else_to_the_next_target() -> None:
    a, b = upstream("a", "well", "well"), upstream("b", "well")
    assert {beside([a], [b], seed=seed) for seed in range(20)} == {"a0", "a1"}
    assert beside([upstream("a", "well")], [b]) == "b0"
    assert beside([upstream("a", "well", "full")], [b]) == "b0"


@pytest.mark.parametrize("matter", NO_USE)
def test_there_is_no_second_attempt_where_only_the_first_or_what_is_out_could_have_it(matter: str) -> None:
    assert beside([upstream("a", "well")]) == "nowhere"
    assert beside([upstream("a", "well", matter)], [upstream("b", matter)]) == "nowhere"


def test_one_replica_is_not_given_a_second_attempt_under_another_name_of_the_model() -> None:
    a = upstream("a", "well")
    assert beside([Target(a, "x")], [Target(a, "y")]) == "nowhere"


def test_beside_a_call_that_waits_for_a_place_there_is_no_second_attempt() -> None:
    assert beside([upstream("a", "full")]) == "nowhere"


def test_to_have_looked_for_a_second_place_changes_nothing() -> None:
    walk = Walk([upstream("a", "well")])
    assert walk.plan.beside(walk.place, NOW) is None
    assert walk.names(2) == ["a0", "(a0)"]


# Any fleet, and any failures.


class Step(NamedTuple):
    """How an attempt fails, whether the key is put out by it, and what happens before the next is looked for."""

    again: Again
    puts_out: bool
    seconds: float
    matters: list[tuple[int, str]]


class Trial:
    """A plan, held against what it may do. Written down from the rules, and not from how the plan goes about them."""

    def __init__(self, way: Route, seed: int) -> None:
        self.route = way
        self.plan = Plan(way, "m", random.Random(seed))
        self.now = NOW
        self.tried: set[tuple[str, Replica]] = set()
        self.useless: set[Replica] = set()
        self.refused: set[Upstream] = set()
        self.visits: Counter[Target] = Counter()
        self.place = self.plan.first(NOW)

    # What there is.

    @property
    def targets(self) -> list[Target]:
        return [target for stage in self.route.stages for target in stage]

    def places(self) -> Iterator[tuple[Target, Replica]]:
        """All that are not useless for this call."""
        for target in self.targets:
            if target.upstream not in self.refused:
                yield from ((target, one) for one in target.upstream.replicas if one not in self.useless)

    def name(self, target: Target) -> str:
        return target.model or "m"

    def has_tried(self, target: Target, one: Replica) -> bool:
        return (self.name(target), one) in self.tried

    def cools(self, target: Target, one: Replica) -> bool:
        return one.cooling.get(self.name(target), 0.0) > self.now

    def is_fit(self, target: Target, one: Replica) -> bool:
        return one.breaker.closed and one.healthy and not self.cools(target, one)

    def pays(self, target: Target) -> bool:
        return target.upstream.budget.left(self.now) >= 1 or not target.upstream.retry.reserve

    def may_go(self, target: Target) -> bool:
        key = target.upstream.key
        return key.closed or (key.awaits_probe(self.now) and self.pays(target))

    def is_probe(self, target: Target, one: Replica) -> bool:
        return one.breaker.awaits_probe(self.now) and one.healthy and not self.cools(target, one) and self.pays(target)

    def good(self) -> dict[Target, list[Replica]]:
        """Where something has not been tried that is fit, or is to be probed, and has a place free."""
        found: dict[Target, list[Replica]] = {}
        for target, one in self.places():
            is_open = one.inflight < LIMIT and self.may_go(target) and not self.has_tried(target, one)
            if is_open and (self.is_fit(target, one) or self.is_probe(target, one)):
                found.setdefault(target, []).append(one)
        return found

    # What is done.

    def check_first(self) -> None:
        good = self.good()
        assert not self.place.visited
        assert self.place.target in self.targets, "a target without weight"
        if good:
            self._check_good(self.place, good)
            self._check_stage(self.place, good)

    def step(self, step: Step) -> bool:
        """Fail, and go on. False if there is nowhere to go."""
        place = self.place
        if place.replica is None:
            place = place._replace(replica=self._waited_for(place))
        self._fail(place, step)
        for number, matter in step.matters:
            replicas = list({one: None for target in self.targets for one in target.upstream.replicas})
            befall(replicas[number % len(replicas)], matter, self.now)
        self.now += step.seconds
        found = self.plan.next(place, self.now)
        self._check(place, found)
        if found is None:
            return False
        self.place = found
        return True

    def _waited_for(self, place: Place) -> Replica:
        """The one on which a place becomes free first."""
        will_do = [one for one in place.upstream.replicas if self.plan.will_do(place, one, self.now)]
        assert will_do, "nothing will ever do"
        assert all(one not in self.useless and (place.model, one) not in self.tried for one in will_do)
        return will_do[0]

    def _fail(self, place: Place, step: Step) -> None:
        assert place.replica is not None
        self.plan.failed(place, step.again)
        self.tried.add((place.model, place.replica))
        self.visits[place.target] += 1
        if step.again is not Again.ANYWHERE:
            self.useless.add(place.replica)
        if step.again is Again.OTHER_UPSTREAM:
            self.refused.add(place.upstream)
            if step.puts_out:
                place.upstream.key.failed(place.upstream.key.begin(self.now), self.now)

    def _check(self, last: Place, found: Place | None) -> None:
        good = self.good()
        if good:
            assert found is not None
            self._check_good(found, good)
            if self.visits[last.target] == 1 and last.target in good:
                assert found.target is last.target, "another replica comes first, once"
            else:
                self._check_stage(found, good)
        else:
            self._check_last_resort(found)

    def _check_good(self, found: Place, good: dict[Target, list[Replica]]) -> None:
        assert found.replica is not None, "a place is free, and not taken"
        assert not found.visited
        assert (found.model, found.replica) not in self.tried, "it is the same again"
        assert found.replica not in self.useless
        assert found.upstream not in self.refused
        assert found.replica.inflight < LIMIT
        assert found.target in good
        if found.replica not in good[found.target]:
            assert found.upstream.panics, "it is out"
            assert not self.cools(found.target, found.replica)

    def _check_stage(self, found: Place, good: dict[Target, list[Replica]]) -> None:
        untried = [
            [target for target in stage if target in good and not self.visits[target]] for stage in self.route.stages
        ]
        first = next((stage for stage in untried if stage), None)
        assert found.target in (good if first is None else first)

    def _last_resorts(self) -> list[list[tuple[Target, Replica]]]:
        """Where it might go if nothing is good; the first of these lists with anything in it is where it must go."""
        fit: list[tuple[Target, Replica]] = []  # and full, or it would be good
        same: list[tuple[Target, Replica]] = []  # or another one of that upstream, whichever is better
        out: list[tuple[Target, Replica]] = []
        same_but_full: list[tuple[Target, Replica]] = []
        for target, one in self.places():
            been, full = self.has_tried(target, one), one.inflight >= LIMIT
            visited = self.visits[target] > 0 and target.upstream.key.closed
            if target.upstream.key.closed and not been and self.is_fit(target, one):
                fit.append((target, one))
            if visited and not full:
                same.append((target, one))
            if not been and not full:
                out.append((target, one))
            if visited and full and been:
                same_but_full.append((target, one))
        return [fit, same, out, same_but_full]

    def _check_last_resort(self, found: Place | None) -> None:
        fit, *others = self._last_resorts()
        best = next((places for places in others if places), [])
        if found is None:
            assert not fit, "there is something to wait for"
            assert not best, "there is somewhere to go"
        elif found.replica is None:
            assert found.target in [target for target, _ in fit], "there is nothing to wait for"
        else:
            assert not fit, "there is something to wait for"
            assert (found.target, found.replica) in best
            assert found.visited is self.has_tried(found.target, found.replica)
            ranks = [self._rank(*place) for place in best]
            assert self._rank(found.target, found.replica) == min(ranks), "there is something better"

    def _rank(self, target: Target, one: Replica) -> tuple[bool, bool, float, bool]:
        """What is without a key comes last, then what is out, then what has to cool, then what was tried."""
        out = not one.breaker.closed or not one.healthy
        cools = 0.0 if out else max(one.cooling.get(self.name(target), 0.0), self.now)
        return not target.upstream.key.closed, out, cools, self.has_tried(target, one)


REPLICAS = st.lists(
    st.sampled_from(["well", "well", "well", *NO_USE, "awaiting", "awaiting+full", "cooling-x", "cooling-x+full"]),
    min_size=1,
    max_size=4,
)
UPSTREAMS = st.lists(
    st.tuples(
        REPLICAS,
        st.sampled_from(["accepted", "accepted", "accepted", "refused", "awaiting", "probing"]),
        st.sampled_from([0, 1, RESERVE, None]),
    ),
    min_size=1,
    max_size=3,
)
TARGETS = st.tuples(st.integers(0, 2), st.sampled_from([None, "x", "y"]), st.sampled_from([0.0, 1.0, 3.0]))
STAGES = st.lists(
    st.lists(TARGETS, min_size=1, max_size=3).filter(lambda stage: any(weight for *_, weight in stage)),
    min_size=1,
    max_size=3,
)


@st.composite
def ways(draw: st.DrawFn) -> Route:
    """Any route to any fleet."""
    fleet = draw(UPSTREAMS)
    made = [upstream("abc"[at], *words, key=key, left=left) for at, (words, key, left) in enumerate(fleet)]
    stages = draw(STAGES)
    note(f"{fleet}\n{stages}")
    return route(*([Target(made[at % len(made)], model, weight) for at, model, weight in stage] for stage in stages))


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from([Again.ANYWHERE, Again.ANYWHERE, Again.ANYWHERE, Again.ELSEWHERE, Again.OTHER_UPSTREAM]),
        st.booleans(),
        st.sampled_from([0.0, 0.0, 0.5, 6.0, 40.0]),
        st.lists(st.tuples(st.integers(0, 11), st.sampled_from(MATTERS)), max_size=3),
    ),
    max_size=14,
)


@given(way=ways(), steps=STEPS, seed=st.integers(0, 99))
@settings(deadline=None, max_examples=500)
def test_however_a_fleet_stands_and_whatever_fails_the_best_that_is_left_is_gone_to(
    way: Route, steps: list[Step], seed: int
) -> None:
    trial = Trial(way, seed)
    trial.check_first()
    for step in steps:
        if not trial.step(step):
            break


@given(way=ways(), seed=st.integers(0, 99), again=st.sampled_from(list(Again)[1:]))
@settings(deadline=None)
def test_a_call_that_fails_everywhere_has_soon_been_everywhere(way: Route, seed: int, again: Again) -> None:
    trial = Trial(way, seed)
    step = Step(again, puts_out=True, seconds=0.0, matters=[])
    places = {(trial.name(target), one) for target in trial.targets for one in target.upstream.replicas}
    for _ in range(len(places)):
        if trial.place.visited or not trial.step(step):
            return
    assert trial.place.visited or trial.place.replica is None


# What a wait in the queue leads to.


@pytest.mark.parametrize(("status", "requests", "waits"), [(500, 3, 2), (401, 1, 0)])
async def test_what_fails_after_a_wait_for_its_place_is_known_to_have_failed_there(
    status: int, requests: int, waits: int
) -> None:
    a = upstream("a", "full")
    seen: list[httpx.Request] = []
    slept: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(status, stream=httpx.ByteStream(b"{}"))

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    a.transport = httpx.MockTransport(answer)
    body = b'{"model": "m"}'
    call, exchange = Call("chat", "m", body, (10, 13)), Exchange("r-1", "chat", NOW)
    task = spawn(Dispatch(random.Random(1), lambda: NOW, sleep)(call, route([a]), exchange), name="call")
    while not a.queue:
        await asyncio.sleep(0)
    a.release(a.replicas[0])
    with pytest.raises(UpstreamError):
        await task
    assert len(seen) == requests
    assert len(slept) == waits, "the same again, and at once"
    assert a.replicas[0].inflight == LIMIT - 1
