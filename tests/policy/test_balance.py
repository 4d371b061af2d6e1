"""The balances, each alone and under a load: who gets the call, who is not starved, who is not flooded."""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from heapq import heappop, heappush

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.policy.balance import BALANCES, Balance, LeastLoad, Load, PeakEwma, RoundRobin, Weighted, ramp

NOW = 1000.0


class Host:
    """A replica, as a balance sees it. `latency`: seconds to the first byte, observed `age` seconds before NOW."""

    def __init__(
        self, name: str, inflight: int = 0, latency: float | None = None, weight: float = 1.0, age: float = 0.0
    ) -> None:
        self.name = name
        self.inflight = inflight
        self.weight = weight
        self.share = 1.0
        self.load: Load | None = None
        self.latency = PeakEwma()
        if latency is not None:
            self.latency.observe(latency, NOW - age)

    def ramp(self, now: float) -> float:
        return self.share

    def __repr__(self) -> str:
        return self.name


def host(name: str, *, share: float = 1.0, weight: float = 1.0) -> Host:
    made = Host(name, weight=weight)
    made.share = share
    return made


def dealt(*values: float) -> Callable[[], float]:
    """Chance that turns up these values, and no more."""
    left: Iterator[float] = iter(values)
    return lambda: next(left)


def counted(balance: Balance[Host], hosts: list[Host], times: int = 6000, seed: int = 1) -> Counter[str]:
    chance = random.Random(seed).random
    return Counter(balance(hosts, NOW, chance).name for _ in range(times))


# The average.


def test_an_average_is_nothing_before_the_first_sample_and_then_that() -> None:
    average = PeakEwma()
    assert average.read(0.0) == average.read(1e9) == 0.0
    average.observe(0.3, 50.0)
    assert average.read(50.0) == 0.3


@pytest.mark.parametrize("elapsed", [0.0, 0.001, 10.0, 1e6])
def test_an_average_goes_up_at_once(elapsed: float) -> None:
    average = PeakEwma()
    average.observe(0.1, 50.0)
    average.observe(5.0, 50.0 + elapsed)
    assert average.read(50.0 + elapsed) == 5.0


@pytest.mark.parametrize(("elapsed", "average_is"), [(0.0, 1.0), (10.0, 1 / math.e), (10 * math.log(2), 0.5)])
def test_an_average_comes_down_with_the_time_since_the_last_sample(elapsed: float, average_is: float) -> None:
    average = PeakEwma(decay=10.0)
    average.observe(1.0, 50.0)
    assert average.read(50.0 + elapsed) == pytest.approx(average_is)
    average.observe(0.0, 50.0 + elapsed)
    assert average.cost == pytest.approx(average_is)


def test_an_average_is_not_moved_by_being_read() -> None:
    average = PeakEwma()
    average.observe(1.0, 0.0)
    assert average.read(10.0) == average.read(10.0) < average.read(5.0) < 1.0
    assert (average.cost, average.at) == (1.0, 0.0)


def test_an_average_is_not_upset_by_a_clock_that_goes_back() -> None:
    average = PeakEwma()
    average.observe(1.0, 1e6)
    assert average.read(0.0) == 1.0
    average.observe(0.5, 0.0)
    assert average.cost == 1.0


@given(st.lists(st.tuples(st.floats(0, 600), st.floats(0, 100)), min_size=1))
@settings(deadline=None)
def test_an_average_lies_between_the_last_sample_and_the_highest(samples: list[tuple[float, float]]) -> None:
    average = PeakEwma()
    now = 0.0
    highest = 0.0
    for seconds, passed in samples:
        now += passed
        average.observe(seconds, now)
        highest = max(highest, seconds)
        assert seconds * (1 - 1e-9) <= average.read(now) <= highest * (1 + 1e-9)
        assert 0.0 <= average.read(now + 5.0) <= average.read(now)


# Coming back.


@pytest.mark.parametrize(
    ("returned_at", "now", "seconds", "share"),
    [
        (None, 1e9, 30.0, 1.0),
        (100.0, 100.0, 30.0, 0.1),
        (100.0, 110.0, 30.0, 0.4),
        (100.0, 115.0, 30.0, 0.55),
        (100.0, 130.0, 30.0, 1.0),
        (100.0, 1e9, 30.0, 1.0),
        (100.0, 99.0, 30.0, 0.1),  # the clock is not its own
        (100.0, 100.0, 0.0, 1.0),
    ],
)
def test_a_share_grows_from_a_tenth_to_the_whole(
    returned_at: float | None, now: float, seconds: float, share: float
) -> None:
    assert ramp(returned_at, now, seconds) == pytest.approx(share)
    assert ramp(returned_at, now, seconds) <= 1.0


# All of them.


@pytest.mark.parametrize("name", BALANCES)
def test_one_candidate_is_it_whatever_its_state(name: str) -> None:
    only = host("only", weight=0.0, share=0.1)
    assert BALANCES[name]()([only], NOW, dealt()) is only


@pytest.mark.parametrize("name", BALANCES)
@given(
    hosts=st.lists(
        st.builds(
            Host,
            name=st.sampled_from("abc"),
            inflight=st.integers(0, 1000),
            latency=st.one_of(st.none(), st.floats(0, 600)),
            weight=st.one_of(st.just(0.0), st.floats(0.001, 1000)),
            age=st.floats(0, 1e5),
        ),
        min_size=1,
        max_size=8,
    ),
    chance=st.floats(0, 1, exclude_max=True),
)
@settings(deadline=None)
def test_any_chance_chooses_one_of_the_candidates(name: str, hosts: list[Host], chance: float) -> None:
    balance = BALANCES[name]()
    for now in (NOW, NOW, NOW + 1):
        assert balance(hosts, now, lambda: chance) in hosts
    assert balance(hosts, NOW, lambda: math.nextafter(1, 0)) in hosts


def test_each_upstream_takes_turns_of_its_own() -> None:
    hosts = [host("a"), host("b")]
    one, other = BALANCES["round_robin"](), BALANCES["round_robin"]()
    assert [balance(hosts, NOW, dealt()).name for balance in (one, other, one, other)] == ["a", "a", "b", "b"]


@pytest.mark.parametrize("name", BALANCES)
def test_equals_get_equal_shares(name: str) -> None:
    counts = counted(BALANCES[name](), [host("a"), host("b"), host("c")])
    assert all(1850 <= counts[each] <= 2150 for each in "abc"), counts


# Least load.


@pytest.mark.parametrize(
    ("a", "b", "chosen"),
    [
        (Host("a", 3), Host("b", 2), "b"),
        (Host("a", 0, 0.1), Host("b", 0, 0.2), "a"),
        (Host("a", 1, 0.1), Host("b", 0, 0.3), "a"),  # 2 * 0.1 against 1 * 0.3
        (Host("a", 3, 0.1), Host("b", 0, 0.3), "b"),
        (Host("a", 3, 0.1, weight=4), Host("b", 0, 0.3), "a"),
        (Host("a", 0, weight=0), Host("b", 1000, 60.0), "b"),
        (Host("a", 9, weight=0), Host("b", 8, weight=0), "ab"),
        (Host("a", 3, 9.0), Host("b", 4), "a"),  # nobody knows how fast b is
        (Host("a", 5, 0.001), Host("b", 4), "b"),
        (Host("a", 4, 9.0), Host("b", 4), "ab"),
        (Host("a", 3, 60.0, age=100.0), Host("b", 2, 0.5), "b"),  # forgiven, and no more than that
        (Host("a", 1, 60.0, age=100.0), Host("b", 2, 0.5), "a"),
        (Host("a", 1, 60.0, age=5.0), Host("b", 2, 0.5), "b"),  # not yet
        (Host("a", 4, 0.1, age=100.0), Host("b", 0, 0.5), "ab"),  # 5 * 0.1 against 1 * 0.5: no faster than it was
        (Host("a", 2, 1.0, age=1e5), Host("b", 1, 1.0, age=1e6), "b"),
        (Host("a", 0, 1.0, age=1e5), Host("b", 1, 0.1), "a"),
    ],
    ids=repr,
)
def test_of_two_the_less_loaded_is_chosen(a: Host, b: Host, chosen: str) -> None:
    for hosts in ([a, b], [b, a]):
        assert set(counted(LeastLoad(), hosts, times=60)) == set(chosen)


def test_a_tie_is_settled_at_random() -> None:
    counts = counted(LeastLoad(), [Host("a", 2, 0.2), Host("b", 2, 0.2)])
    assert 2800 <= counts["a"] <= 3200


def test_what_has_just_come_back_is_the_heavier_for_it() -> None:
    back, other = Host("back", 0, 0.1), Host("other", 8, 0.1)
    back.share = 0.1
    assert set(counted(LeastLoad(), [back, other], times=50)) == {"other"}
    back.share = 0.12
    assert set(counted(LeastLoad(), [back, other], times=50)) == {"back"}


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_two_are_never_the_same_and_every_pair_comes_up(count: int) -> None:
    class Seen(Host):
        def ramp(self, now: float) -> float:
            looked_at.append(self.name)
            return 1.0

    hosts = [Seen(str(number)) for number in range(count)]
    rng = random.Random(3)
    pairs: set[frozenset[str]] = set()
    for _ in range(1000):
        looked_at: list[str] = []
        LeastLoad()(hosts, NOW, rng.random)
        assert len(set(looked_at)) == 2
        pairs.add(frozenset(looked_at))
    assert len(pairs) == count * (count - 1) // 2


def served(hosts: list[Host], speed: dict[str, float], rate: float, calls: int) -> dict[str, int]:
    """How many calls each got, of a steady load; a call is in flight until its first byte."""
    rng = random.Random(5)
    balance = LeastLoad()
    counts = dict.fromkeys(speed, 0)
    ends: list[tuple[float, int, Host, float]] = []
    now = NOW
    for number in range(calls):
        now += rng.expovariate(rate)
        while ends and ends[0][0] <= now:
            at, _, done, seconds = heappop(ends)
            done.inflight -= 1
            done.latency.observe(seconds, at)
        chosen = balance(hosts, now, rng.random)
        chosen.inflight += 1
        counts[chosen.name] += 1
        seconds = speed[chosen.name] * rng.uniform(0.8, 1.2)
        heappush(ends, (now + seconds, number, chosen, seconds))
    return counts


@pytest.mark.parametrize("rate", [2.0, 50.0])
def test_one_that_is_ten_times_slower_gets_few_calls_and_never_none(rate: float) -> None:
    counts = served([Host("a"), Host("b"), Host("slow")], {"a": 0.5, "b": 0.5, "slow": 5.0}, rate, 3000)
    assert 3 <= counts["slow"] < 450
    assert min(counts["a"], counts["b"]) > 1100


def test_a_newcomer_is_neither_starved_nor_flooded_before_its_first_answer() -> None:
    hosts = [Host("a", 5, 0.5), Host("b", 5, 0.5), Host("new")]
    counts = served(hosts, {"a": 1e6, "b": 1e6, "new": 1e6}, 1000.0, 85)
    assert 20 <= counts["new"] <= 40  # all have about a third of the 95


def test_a_burst_is_shared_by_what_was_idle_and_what_was_not() -> None:
    hosts = [Host("a", latency=0.5), Host("b", latency=0.5, age=1.0), Host("idle", latency=0.5, age=120.0)]
    counts = served(hosts, {"a": 1e6, "b": 1e6, "idle": 1e6}, 1000.0, 90)
    assert all(20 <= each <= 40 for each in counts.values()), counts


# Round robin.


def chosen_of(balance: RoundRobin, hosts: list[Host], times: int) -> str:
    return "".join(balance(hosts, NOW, dealt()).name for _ in range(times))


def test_turns_go_by_name_whatever_the_order_of_the_candidates() -> None:
    a, b, c = host("a"), host("b"), host("c")
    balance = RoundRobin()
    assert chosen_of(balance, [b, c, a], 2) == "ab"
    assert chosen_of(balance, [c, a, b], 2) == "ca"
    assert chosen_of(balance, [a, b, c], 3) == "bca"


def test_turns_go_on_where_they_were_when_candidates_come_and_go() -> None:
    a, b, c, d = hosts = [host(name) for name in "abcd"]
    balance = RoundRobin()
    assert chosen_of(balance, hosts, 2) == "ab"
    assert chosen_of(balance, [a, c, d], 2) == "cd"  # the last one is gone
    assert chosen_of(balance, hosts, 2) == "ab"
    assert chosen_of(balance, [a, d], 3) == "dad"
    assert chosen_of(balance, hosts, 4) == "abcd"
    assert chosen_of(balance, [b], 2) == "bb"
    assert chosen_of(balance, hosts, 2) == "ab"


def test_replicas_of_one_name_have_a_turn_each() -> None:
    hosts = [host("a"), host("a"), host("a"), host("b")]
    balance = RoundRobin()
    turns = [balance(hosts, NOW, dealt()) for _ in range(8)]
    assert {id(each) for each in turns[:4]} == {id(each) for each in hosts}
    assert turns[4:] == turns[:4]


def test_what_has_just_come_back_is_passed_over_as_often_as_its_share_is_short() -> None:
    hosts = [host("a"), host("b", share=0.25), host("c")]
    balance = RoundRobin()
    turns = "".join(balance(hosts, NOW, dealt(*chances)).name for chances in [(), (0.25,), (), (0.24,), ()])
    assert turns == "acabc"
    counts = counted(RoundRobin(), hosts)
    assert counts["b"] / counts["a"] == pytest.approx(0.25, abs=0.03)
    assert counts["a"] == pytest.approx(counts["c"], abs=1)


def test_when_all_are_passed_over_it_is_the_next_ones_turn() -> None:
    hosts = [host("a", share=0.1), host("b", share=0.1)]
    balance = RoundRobin()
    assert [balance(hosts, NOW, dealt(0.9, 0.9)).name for _ in range(3)] == ["a", "b", "a"]


# Weighted.


@pytest.mark.parametrize(
    ("chance", "chosen"), [(0.0, "a"), (0.2499, "a"), (0.25, "c"), (0.7499, "c"), (0.75, "d"), (0.9999, "d")]
)
def test_each_has_the_part_of_chance_that_its_weight_and_ramp_give_it(chance: float, chosen: str) -> None:
    hosts = [host("a"), host("b", weight=0.0), host("c", weight=2.0), host("d", weight=2.0, share=0.5)]
    assert Weighted()(hosts, NOW, dealt(chance)).name == chosen


def test_weights_of_zero_share_alike_where_there_are_no_others() -> None:
    counts = counted(Weighted(), [host("a", weight=0.0), host("b", weight=0.0)])
    assert 2800 <= counts["a"] <= 3200


@given(
    weights=st.lists(st.sampled_from([0.0, 0.1, 0.3, 1.0, 7.0, 1e-9, 1e9]), min_size=2, max_size=6),
    chance=st.one_of(st.floats(0, 1, exclude_max=True), st.just(math.nextafter(1, 0))),
)
@settings(deadline=None)
def test_a_weight_of_zero_is_never_chosen_beside_others(weights: list[float], chance: float) -> None:
    chosen = Weighted()([host("x", weight=weight) for weight in weights], NOW, lambda: chance)
    assert chosen.weight > 0 or not any(weights)


# What engines say of themselves.


def said(
    running: float = 0.0,
    waiting: float = 0.0,
    kv: float | None = None,
    *,
    before: int = 0,
    now: int = 0,
    name: str = "a",
) -> Host:
    """A host whose engine said this when `before` of its calls were ours, and that has `now` of ours."""
    made = Host(name, inflight=now)
    made.load = Load(running, waiting, kv, inflight=before, at=NOW)
    return made


def preferred(one: Host, other: Host) -> str:
    """Who is taken, whichever of the two comes first."""
    (taken,) = {LeastLoad()(pair, NOW, lambda: 0.0).name for pair in ([one, other], [other, one])}
    return taken


@pytest.mark.parametrize(
    ("running", "waiting", "before", "beside"),
    [(5, 3, 0, 8.0), (5, 3, 6, 2.0), (5, 3, 8, 0.0), (5, 3, 9, 0.0), (0, 0, 4, 0.0), (0.0, 0.0, 0, 0.0)],
)
def test_what_an_engine_has_beside_our_calls_is_never_less_than_nothing(
    running: float, waiting: float, before: int, beside: float
) -> None:
    assert Load(running, waiting, None, inflight=before, at=NOW).beside == beside


@pytest.mark.parametrize(
    ("kv", "penalty"),
    [(None, 0.0), (0.0, 0.0), (-1.0, 0.0), (0.5, 0.15), (0.9, 1.35), (0.95, 2.85), (1.0, 14.85), (9.0, 14.85)],
)
def test_a_cache_counts_as_requests_and_the_more_the_fuller_it_is(kv: float | None, penalty: float) -> None:
    assert Load(2, 1, kv, inflight=3, at=NOW).beside == pytest.approx(penalty)


def test_an_engine_that_others_keep_busy_is_passed_over() -> None:
    assert preferred(said(running=4, name="busy"), said(running=0, now=3, name="ours")) == "ours"
    assert preferred(said(running=4, name="busy"), said(running=0, now=5, name="ours")) == "busy"


def test_calls_begun_since_it_spoke_are_added_and_those_ended_are_taken_away() -> None:
    assert preferred(said(running=2, now=2, name="more"), said(running=3, name="less")) == "less"
    assert preferred(said(running=6, before=6, now=1, name="ended"), said(running=2, name="other")) == "ended"


def test_of_two_with_the_same_to_do_the_one_with_a_full_cache_is_passed_over() -> None:
    assert preferred(said(running=3, kv=0.98, name="full"), said(running=3, waiting=2, kv=0.2, name="free")) == "free"


def test_where_one_of_two_says_nothing_both_are_judged_by_our_own_calls() -> None:
    assert preferred(said(running=50, now=1, name="says"), Host("silent", inflight=2)) == "says"
    assert preferred(said(running=50, now=3, name="says"), Host("silent", inflight=2)) == "silent"


def test_between_looks_a_burst_is_spread_by_what_was_said_and_by_what_was_sent() -> None:
    hosts = [said(running=running, name=f"h{running}") for running in (0, 10, 20)]
    chance = random.Random(1).random
    for _ in range(60):
        LeastLoad()(hosts, NOW, chance).inflight += 1
    loads = [host.inflight + host.load.beside for host in hosts if host.load is not None]
    assert max(loads) - min(loads) <= 4
