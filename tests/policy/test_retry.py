"""The wait before another try at the same place: how long it may be, and when it is not worth it."""

import random
from collections.abc import Callable
from math import inf

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tenacity import AsyncRetrying, RetryCallState

from gateway.policy.retry import FullJitter, RetrySettings, keep_to

JUST_UNDER_ONE = 1 - 2**-53

CHANCES = st.floats(0, 1, exclude_max=True)
BASES = st.floats(0.001, 60)
CAPS = st.floats(0.001, 600)


def after(attempts: int) -> RetryCallState:
    """A call that has failed so many times."""
    state = RetryCallState(AsyncRetrying(), None, (), {})
    state.attempt_number = attempts
    return state


def always(chance: float) -> Callable[[], float]:
    return lambda: chance


def jittered(attempts: int, rules: RetrySettings, chance: float) -> float:
    return FullJitter(rules, always(chance))(after(attempts))


@pytest.mark.parametrize(
    ("failed", "longest"),
    [(1, 0.25), (2, 0.5), (3, 1.0), (4, 2.0), (5, 4.0), (6, 8.0), (7, 8.0), (10, 8.0), (5000, 8.0)],
)
def test_the_bound_of_a_wait_doubles_with_every_attempt_up_to_the_cap(failed: int, longest: float) -> None:
    assert jittered(failed, RetrySettings(), JUST_UNDER_ONE) == pytest.approx(longest)
    assert jittered(failed, RetrySettings(), 0.5) == pytest.approx(longest / 2)
    assert jittered(failed, RetrySettings(), 0.0) == 0.0


@given(failed=st.integers(1, 20), base=BASES, cap=CAPS, chance=CHANCES)
@example(failed=1, base=60.0, cap=0.5, chance=JUST_UNDER_ONE)
@settings(deadline=None)
def test_a_wait_is_never_longer_than_its_bound_nor_less_than_nothing(
    failed: int, base: float, cap: float, chance: float
) -> None:
    bound = min(cap, base * 2 ** (failed - 1))
    wait = jittered(failed, RetrySettings(base=base, cap=cap), chance)
    assert 0 <= wait <= bound
    assert wait == pytest.approx(bound * chance)


@given(failed=st.integers(1, 5000), chance=CHANCES)
@settings(deadline=None)
def test_no_number_of_attempts_makes_a_wait_longer_than_the_cap(failed: int, chance: float) -> None:
    assert 0 <= jittered(failed, RetrySettings(), chance) <= RetrySettings().cap


def test_callers_who_fail_together_are_scattered_over_the_whole_of_the_bound() -> None:
    wait = FullJitter(RetrySettings(), random.Random(1).random)
    waits = sorted(wait(after(3)) for _ in range(1000))
    assert waits[0] < 0.01
    assert waits[-1] > 0.99
    assert all(abs(at - number / 1000) < 0.06 for number, at in enumerate(waits))


def test_each_wait_takes_a_chance_of_its_own() -> None:
    chances = iter([0.1, 0.9])
    wait = FullJitter(RetrySettings(), lambda: next(chances))
    assert wait(after(1)) < wait(after(1))


@given(asked=st.floats(0, 200), base=BASES, longest=st.floats(0, 120), chance=CHANCES)
@example(asked=5.0, base=0.25, longest=5.0, chance=0.0)
@example(asked=0.0, base=0.25, longest=0.0, chance=0.5)
@settings(deadline=None)
def test_an_upstream_that_says_when_is_kept_to_and_a_little_more_or_not_waited_for(
    asked: float, base: float, longest: float, chance: float
) -> None:
    wait = keep_to(asked, RetrySettings(base=base, longest_wait=longest), always(chance))
    if asked > longest:
        assert wait == inf
    else:
        assert asked <= wait <= asked + base


def test_those_who_were_told_the_same_time_do_not_come_back_at_once() -> None:
    chance = random.Random(1).random
    waits = {keep_to(2.0, RetrySettings(), chance) for _ in range(100)}
    assert len(waits) == 100
    assert 2.0 <= min(waits) < 2.02
    assert 2.23 < max(waits) < 2.25


def test_five_seconds_are_waited_for_unless_a_setting_says_otherwise_and_no_more() -> None:
    assert keep_to(5.0, RetrySettings(), always(0.0)) == 5.0
    assert keep_to(5.001, RetrySettings(), always(0.0)) == inf
    assert keep_to(5.001, RetrySettings(longest_wait=6.0), always(0.0)) == 5.001
