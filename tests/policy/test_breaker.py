"""The breaker: what ejects, for how long, who comes back how, and whose word is not heard."""

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.policy.breaker import Breaker, BreakerSettings, State

SETTINGS = BreakerSettings()


def breaker(rules: BreakerSettings = SETTINGS, chance: Callable[[], float] = lambda: 0.5) -> Breaker:
    return Breaker(rules, chance)


def ejected(times: int = 1, rules: BreakerSettings = SETTINGS, now: float = 0.0) -> tuple[Breaker, float]:
    """A breaker that has just been ejected for the n-th time, each probe having failed at once, and the time."""
    subject = breaker(rules)
    fail(subject, rules.failures, now)
    for _ in range(times - 1):
        now = back_at(subject)
        assert subject.failed(subject.begin(now), now)
    return subject, now


def returned(times: int = 1, now: float = 0.0) -> tuple[Breaker, float]:
    """A breaker that came back this moment from being out for the n-th time in a row, and the time."""
    subject, _ = ejected(times, now=now)
    now = back_at(subject)
    assert subject.answered(subject.begin(now), now)
    return subject, now


def fail(subject: Breaker, times: int, now: float) -> bool:
    return [subject.failed(subject.begin(now), now) for _ in range(times)][-1]


def serve(subject: Breaker, times: int, now: float) -> None:
    for _ in range(times):
        subject.served(subject.begin(now), now)


def back_at(subject: Breaker) -> float:
    at = subject.back_at()
    assert at is not None
    return at


def test_a_breaker_begins_closed_and_was_never_away() -> None:
    subject = breaker()
    assert subject.closed
    assert subject.state(0.0) is State.CLOSED
    assert not subject.awaits_probe(0.0)
    assert subject.back_at() is None
    assert subject.returned_at is None
    assert subject.ejections == 0


# What ejects.


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_so_many_failures_in_a_row_eject_and_one_fewer_does_not(failures: int) -> None:
    subject = breaker(BreakerSettings(failures=failures))
    assert not any(subject.failed(0, 0.0) for _ in range(failures - 1))
    assert subject.closed
    assert subject.failed(0, 0.0)
    assert not subject.closed
    assert subject.state(0.0) is State.OPEN


def test_failures_in_a_row_need_not_be_close_together() -> None:
    subject = breaker()
    assert [fail(subject, 1, now) for now in (0.0, 100.0, 200.0, 300.0, 400.0)] == [False] * 4 + [True]


def test_one_call_that_is_served_ends_the_row() -> None:
    subject = breaker(BreakerSettings(volume=1000))
    for _ in range(20):
        assert not fail(subject, 4, 0.0)
        serve(subject, 1, 0.0)
    assert subject.closed


def test_a_call_without_a_verdict_neither_ends_the_row_nor_adds_to_it() -> None:
    subject = breaker()
    fail(subject, 4, 0.0)
    for _ in range(100):
        subject.abandoned(subject.begin(0.0))
    assert subject.closed
    assert fail(subject, 1, 0.0)


# Of 10 verdicts at least 8 must be good; the failures come one by one, with a good one between, so that no row ejects.
@pytest.mark.parametrize(
    ("served", "failed", "out"),
    [
        (7, 3, True),
        (8, 2, False),
        (6, 3, False),  # too few to tell
        (12, 3, False),
        (11, 3, True),
        (80, 20, False),
        (79, 20, True),
    ],
)
def test_too_small_a_share_served_of_enough_calls_ejects(served: int, failed: int, *, out: bool) -> None:
    subject = breaker(BreakerSettings(failures=1000))
    serve(subject, served, 0.0)
    assert not any(subject.failed(0, 0.0) for _ in range(failed - 1))
    assert subject.failed(0, 0.0) is out
    assert subject.closed is not out


@pytest.mark.parametrize("share", [0.07, 0.29, 0.57, 0.7])
def test_a_share_that_is_just_reached_does_not_eject(share: float) -> None:
    subject = breaker(BreakerSettings(failures=1000, served=share, volume=100))
    serve(subject, round(share * 100), 0.0)
    assert not fail(subject, 100 - round(share * 100), 0.0)
    assert fail(subject, 1, 0.0)


@pytest.mark.parametrize(("later", "out"), [(0.0, True), (8.9, True), (10.0, False), (1000.0, False)])
def test_only_the_window_is_judged(later: float, *, out: bool) -> None:
    subject = breaker(BreakerSettings(failures=1000))
    subject.served(0, 50.0)  # the window's tenths begin here
    serve(subject, 6, 50.5)
    fail(subject, 2, 50.5)
    assert fail(subject, 1, 50.5 + later) is out


# How long.


def test_each_time_out_is_longer_by_the_first_and_the_longest_is_a_cap() -> None:
    subject, now = ejected()
    times = [back_at(subject) - now]
    for _ in range(12):
        now = back_at(subject)
        assert fail(subject, 1, now)
        times.append(back_at(subject) - now)
    assert times == [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300, 300]


@pytest.mark.parametrize(
    ("chance", "first", "capped"), [(0.0, 27.0, 270.0), (0.25, 28.5, 285.0), (0.5, 30.0, 300.0), (0.75, 31.5, 300.0)]
)
def test_the_time_out_is_spread_and_still_capped(chance: float, first: float, capped: float) -> None:
    subject = breaker(chance=lambda: chance)
    fail(subject, 5, 0.0)
    assert back_at(subject) == pytest.approx(first)
    for _ in range(20):
        now = back_at(subject)
        fail(subject, 1, now)
    assert back_at(subject) - now == pytest.approx(capped)


def test_the_count_falls_by_one_for_each_ejection_time_without_a_failure() -> None:
    for calm, left in [(0.0, 3), (29.0, 3), (30.0, 2), (59.0, 2), (60.0, 1), (90.0, 0), (3000.0, 0)]:
        subject, now = returned(times=3)
        assert subject.ejections == 3
        assert not fail(subject, 1, now + calm)
        assert subject.ejections == left, calm
        assert fail(subject, 4, now + calm)
        assert back_at(subject) - (now + calm) == 30 * (left + 1)


def test_a_failure_begins_the_calm_anew() -> None:
    subject, now = returned(times=3)
    for _ in range(10):
        now += 20.0
        fail(subject, 1, now)
        serve(subject, 9, now)
    assert subject.ejections == 3


def test_time_out_is_no_calm() -> None:
    subject, now = ejected()
    now += 10_000.0
    assert fail(subject, 1, now)
    assert subject.ejections == 2


def test_what_was_out_for_a_day_is_forgiven_as_soon_as_what_was_out_for_an_hour() -> None:
    subject, now = ejected(times=300)
    assert subject.ejections == 10
    now = back_at(subject)
    serve(subject, 1, now)
    fail(subject, 1, now + 300.0)
    assert subject.ejections == 0


# Coming back.


def test_it_is_open_until_its_time_is_over_and_then_half_open_until_a_probe_has_its_verdict() -> None:
    subject, _ = ejected()
    assert [subject.state(now) for now in (0.0, 29.9, 30.0, 1000.0)] == ["open", "open", "half_open", "half_open"]
    assert not subject.awaits_probe(29.9)
    assert subject.awaits_probe(30.0)
    epoch = subject.begin(30.0)
    assert not subject.awaits_probe(31.0)
    assert subject.state(31.0) is State.HALF_OPEN
    assert not subject.closed
    assert subject.answered(epoch, 31.0)
    assert subject.closed
    assert subject.state(31.0) is State.CLOSED
    assert subject.returned_at == 31.0
    assert subject.back_at() is None


def test_a_probe_that_is_served_without_having_been_answered_brings_it_back_too() -> None:
    subject, _ = ejected()
    subject.served(subject.begin(30.0), 32.0)
    assert subject.closed
    assert subject.returned_at == 32.0


def test_a_probe_that_fails_ejects_again_for_longer() -> None:
    subject, _ = ejected()
    assert subject.failed(subject.begin(30.0), 31.0)
    assert subject.state(31.0) is State.OPEN
    assert subject.ejections == 2
    assert subject.back_at() == 31.0 + 60.0
    assert subject.returned_at is None


def test_a_probe_that_is_abandoned_leaves_its_place_to_the_next_call() -> None:
    subject, _ = ejected()
    left = subject.begin(30.0)
    subject.abandoned(left)
    assert subject.awaits_probe(30.0)
    assert subject.state(30.0) is State.HALF_OPEN
    epoch = subject.begin(31.0)
    assert epoch != left
    assert not subject.failed(left, 31.0)
    assert not subject.answered(left, 31.0)
    assert subject.answered(epoch, 31.0)


def test_only_the_first_answer_brings_it_back() -> None:
    subject, _ = ejected()
    epoch = subject.begin(30.0)
    assert subject.answered(epoch, 31.0)
    assert not subject.answered(epoch, 32.0)
    subject.served(epoch, 33.0)
    assert subject.returned_at == 31.0


def test_it_comes_back_with_nothing_held_for_or_against_it_but_the_count() -> None:
    subject = breaker(BreakerSettings(failures=1000, window=100.0))
    serve(subject, 80, 0.0)
    assert fail(subject, 21, 0.0)
    subject.answered(subject.begin(30.0), 30.0)
    assert not fail(subject, 9, 30.0)
    assert fail(subject, 1, 30.0)
    assert subject.ejections == 2


def test_a_row_of_failures_is_counted_from_the_return() -> None:
    subject, now = returned()
    assert not fail(subject, 4, now)
    assert fail(subject, 1, now)


def test_a_probe_that_fails_after_its_answer_is_one_failure_among_others() -> None:
    subject, _ = ejected()
    epoch = subject.begin(30.0)
    subject.answered(epoch, 30.0)
    assert not subject.failed(epoch, 31.0)
    assert subject.closed
    assert fail(subject, 4, 31.0)


# Whose word is not heard.

Verdict = Callable[[Breaker, int, float], object]
VERDICTS: dict[str, Verdict] = {
    "answered": Breaker.answered,
    "served": Breaker.served,
    "failed": Breaker.failed,
    "abandoned": lambda subject, epoch, _now: subject.abandoned(epoch),
}


def shown(subject: Breaker, now: float) -> tuple[object, ...]:
    at = subject.state(now), subject.awaits_probe(now), subject.back_at()
    return (*at, subject.closed, subject.epoch, subject.ejections, subject.returned_at)


@pytest.mark.parametrize("verdict", VERDICTS.values(), ids=VERDICTS)
def test_calls_that_began_before_the_ejection_are_ignored(verdict: Verdict) -> None:
    subject = breaker()
    early = subject.begin(0.0)
    fail(subject, 5, 0.0)
    for now in (1.0, 31.0):
        before = shown(subject, now)
        assert not verdict(subject, early, now)
        assert shown(subject, now) == before
    probe = subject.begin(32.0)
    before = shown(subject, 32.0)
    assert not verdict(subject, early, 32.0)
    assert shown(subject, 32.0) == before
    assert subject.answered(probe, 32.0)


@pytest.mark.parametrize("verdict", VERDICTS.values(), ids=VERDICTS)
@pytest.mark.parametrize(
    "ends", ["out", "half-open", "during the probe", "after the return", "after the next ejection"]
)
def test_calls_that_went_to_what_was_out_are_ignored(verdict: Verdict, ends: str) -> None:
    subject, _ = ejected()
    early = subject.begin(1.0)
    now = 1.0 if ends == "out" else 31.0
    if ends not in ("out", "half-open"):
        probe = subject.begin(now)
        if ends == "after the return":
            subject.answered(probe, now)
            fail(subject, 4, now)
        elif ends == "after the next ejection":
            subject.failed(probe, now)
    before = shown(subject, now)
    assert not verdict(subject, early, now)
    assert shown(subject, now) == before
    if ends == "after the return":
        assert fail(subject, 1, now), "neither has the row been ended"


@pytest.mark.parametrize("verdict", VERDICTS.values(), ids=VERDICTS)
def test_calls_that_begin_beside_a_probe_are_ignored(verdict: Verdict) -> None:
    subject, _ = ejected()
    probe = subject.begin(30.0)
    beside = subject.begin(30.0)
    before = shown(subject, 31.0)
    assert not verdict(subject, beside, 31.0)
    assert shown(subject, 31.0) == before
    assert subject.answered(probe, 31.0)
    fail(subject, 4, 31.0)
    assert not verdict(subject, beside, 31.0)
    assert fail(subject, 1, 31.0)


def test_the_epoch_is_another_after_each_ejection_and_for_each_probe() -> None:
    subject, _ = ejected()
    epochs = [subject.epoch]
    probe = subject.begin(30.0)
    epochs.append(probe)
    subject.abandoned(probe)
    epochs.append(subject.begin(30.0))
    subject.failed(epochs[-1], 30.0)
    epochs.append(subject.epoch)
    assert epochs == sorted(set(epochs))
    assert min(epochs) > 0


def test_a_clock_that_stands_still_or_goes_back_does_no_harm() -> None:
    subject, now = returned(times=2, now=1000.0)
    assert subject.ejections == 2
    serve(subject, 3, now - 500.0)
    assert fail(subject, 5, now - 900.0)
    assert subject.ejections == 3
    assert subject.begin(now) == subject.epoch
    assert breaker().failed(0, -5.0) is False


# All of it against a reference that is slow and plain: lists of what happened, in whole seconds, which the tenths of the
# window then are exact about.


class Reference:
    def __init__(self, rules: BreakerSettings) -> None:
        self.rules = rules
        self.verdicts: list[tuple[int, bool]] = []
        self.failed_at = 0
        self.out_until: float | None = None
        self.count = 0

    def eject(self, now: int, factor: float) -> None:
        self.count = min(self.count + 1, 5)  # max_ejection / ejection
        self.out_until = now + min(self.rules.max_ejection, self.rules.ejection * self.count * factor)
        self.verdicts = []

    def come_back(self, now: int) -> None:
        self.out_until = None
        self.failed_at = now

    def told(self, now: int, *, good: bool) -> bool:
        """Whether this verdict ejects."""
        self.verdicts.append((now, good))
        if good:
            return False
        self.count = max(0, self.count - int((now - self.failed_at) // self.rules.ejection))
        self.failed_at = now
        row = [good for _, good in self.verdicts[-self.rules.failures :]]
        recent = [good for at, good in self.verdicts if at > now - self.rules.window]
        too_few = 100 * sum(recent) < round(100 * self.rules.served) * len(recent)
        return (len(row) == self.rules.failures and not any(row)) or (len(recent) >= self.rules.volume and too_few)


class Calls(RuleBasedStateMachine):
    """Calls begin and end in any order, while time passes."""

    @initialize(
        failures=st.integers(1, 6),
        volume=st.integers(1, 8),
        served=st.integers(0, 10),
        ejection=st.sampled_from([4.0, 20.0]),  # shorter and longer than the window
    )
    def start(self, failures: int, volume: int, served: int, ejection: float) -> None:
        self.limits = BreakerSettings(
            failures=failures,
            volume=volume,
            served=served / 10,
            ejection=ejection,
            max_ejection=5 * ejection,
            jitter=0.2,
        )
        self.chance = 0.5
        self.breaker = Breaker(self.limits, lambda: self.chance)
        self.reference = Reference(self.limits)
        self.now = 100
        self.heard: list[int] = []  # calls whose end counts
        self.deaf: list[int] = []  # calls whose end does not
        self.probe: int | None = None
        self.factor = 1.0
        self.breaker.served(0, self.now)  # so that the tenths begin on whole seconds
        self.reference.told(self.now, good=True)

    @rule(seconds=st.one_of(st.integers(0, 3), st.integers(0, 120)))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(chance=st.sampled_from([0.0, 0.25, 0.5, 0.75]))
    def chance_turns(self, chance: float) -> None:
        self.chance = chance
        self.factor = 1 + self.limits.jitter * (2 * chance - 1)

    @rule(times=st.integers(1, 4))
    def begin(self, times: int) -> None:
        for _ in range(times):
            was_awaited = self.breaker.awaits_probe(self.now)
            out_until = self.reference.out_until
            expected = out_until is not None and self.probe is None and self.now >= out_until
            assert was_awaited is expected
            epoch = self.breaker.begin(self.now)
            if was_awaited:
                self.probe = epoch
            else:
                (self.heard if self.breaker.closed else self.deaf).append(epoch)

    def settle(self, epoch: int, good: bool | None) -> bool:
        """Tell the breaker; whether it was ejected by that."""
        if good is None:
            self.breaker.abandoned(epoch)
            return False
        if good:
            self.breaker.served(epoch, self.now)
            return False
        return self.breaker.failed(epoch, self.now)

    def ejected(self) -> None:
        self.reference.eject(self.now, self.factor)
        self.deaf += self.heard
        self.heard = []

    @precondition(lambda self: self.heard)
    @rule(data=st.data(), good=st.sampled_from([True, False, False, None]))
    def end(self, data: st.DataObject, good: bool | None) -> None:
        epoch = self.heard.pop(data.draw(st.integers(0, len(self.heard) - 1)))
        assert self.breaker.answered(epoch, self.now) is False
        expected = good is not None and self.reference.told(self.now, good=good)
        assert self.settle(epoch, good) is expected
        if expected:
            self.ejected()

    @precondition(lambda self: self.deaf)
    @rule(data=st.data(), good=st.sampled_from([True, False, None]))
    def end_unheard(self, data: st.DataObject, good: bool | None) -> None:
        epoch = self.deaf.pop(data.draw(st.integers(0, len(self.deaf) - 1)))
        before = shown(self.breaker, self.now)
        assert self.breaker.answered(epoch, self.now) is False
        assert self.settle(epoch, good) is False
        assert shown(self.breaker, self.now) == before

    @precondition(lambda self: self.probe is not None)
    @rule(end=st.sampled_from(["answered", "served", "failed", "abandoned"]))
    def end_probe(self, end: str) -> None:
        assert self.probe is not None
        epoch, self.probe = self.probe, None
        if end == "answered":
            assert self.breaker.answered(epoch, self.now)
            self.heard.append(epoch)
        else:
            assert self.settle(epoch, {"served": True, "failed": False, "abandoned": None}[end]) is (end == "failed")
        if end == "failed":
            self.ejected()
        elif end != "abandoned":
            self.reference.come_back(self.now)
            assert self.breaker.returned_at == self.now

    @invariant()
    def it_is_where_the_reference_is(self) -> None:
        out_until = self.reference.out_until
        assert self.breaker.closed is (out_until is None)
        assert self.breaker.ejections == self.reference.count
        if out_until is not None:
            back = back_at(self.breaker)
            assert back == pytest.approx(out_until)
            assert self.breaker.state(self.now) is (State.HALF_OPEN if self.now >= back else State.OPEN)
        else:
            assert self.breaker.state(self.now) is State.CLOSED

    @invariant()
    def there_is_one_probe_at_most(self) -> None:
        if self.probe is not None:
            assert self.probe == self.breaker.epoch
            assert self.probe not in self.deaf
            assert not self.breaker.awaits_probe(self.now)

    @invariant()
    def it_is_never_out_for_longer_than_the_longest_time(self) -> None:
        assert (self.breaker.back_at() or 0.0) <= self.now + self.limits.max_ejection


TestCalls = Calls.TestCase
TestCalls.settings = settings(deadline=None, stateful_step_count=40)
