"""The budget: what requests earn buys attempts while it is fresh, and no history makes more of it."""

import random
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.policy.budget import Budget


def deposits(budget: Budget, times: int, now: float) -> None:
    for _ in range(times):
        budget.deposit(now)


def withdrawals(budget: Budget, now: float, most: int = 1000) -> int:
    """How many attempts are granted, asking until one is refused."""
    granted = 0
    while granted < most and budget.withdraw(now):
        granted += 1
    return granted


@pytest.mark.parametrize(
    ("ratio", "requests", "attempts"),
    [
        (0.2, 4, 0),
        (0.2, 5, 1),
        (0.2, 500, 100),
        (0.1, 10, 1),
        (0.3, 10, 3),
        (0.7, 10, 7),
        (0.07, 100, 7),
        (1.0, 7, 7),
        (1.5, 4, 6),
        (0.0, 1000, 0),
    ],
)
def test_requests_earn_exactly_their_share(ratio: float, requests: int, attempts: int) -> None:
    budget = Budget(ratio, reserve=0)
    deposits(budget, requests, 5.0)
    assert budget.left(5.0) == attempts
    assert withdrawals(budget, 5.0) == attempts


@pytest.mark.parametrize(("reserve", "attempts"), [(0, 0), (0.5, 0), (1, 1), (10, 10)])
def test_the_reserve_is_there_from_the_start(reserve: float, attempts: int) -> None:
    budget = Budget(0.0, reserve)
    assert budget.left(0.0) == attempts
    assert withdrawals(budget, 0.0) == attempts
    assert budget.left(0.0) == 0


def test_what_requests_have_earned_is_spent_before_the_reserve() -> None:
    budget = Budget(0.2, 10)
    deposits(budget, 15, 0.0)
    assert withdrawals(budget, 0.0, most=3) == 3
    assert budget.left(0.0) == 10


def test_an_attempt_may_be_paid_from_both() -> None:
    budget = Budget(0.2, 1.5)
    deposits(budget, 4, 0.0)  # 0.8 and 1.5
    assert withdrawals(budget, 0.0) == 2


@pytest.mark.parametrize(("later", "attempts"), [(0.0, 2), (8.9, 2), (10.0, 0), (19.0, 0), (1000.0, 0)])
def test_what_is_earned_and_not_spent_in_time_is_lost(later: float, attempts: int) -> None:
    budget = Budget(0.2, 0)
    deposits(budget, 10, 50.0)
    assert budget.left(50.0 + later) == attempts
    assert withdrawals(budget, 50.0 + later) == attempts


def test_the_oldest_is_spent_first() -> None:
    budget = Budget(0.2, 0)
    deposits(budget, 10, 50.0)
    deposits(budget, 10, 55.0)
    assert withdrawals(budget, 55.0, most=2) == 2
    assert budget.left(61.0) == 2


def test_the_reserve_is_whole_again_after_a_whole_window_without_a_withdrawal() -> None:
    budget = Budget(0.2, 10)
    assert withdrawals(budget, 0.0, most=10) == 10
    assert budget.left(9.9) == 0
    assert budget.left(10.0) == 10
    assert withdrawals(budget, 10.0, most=1) == 1
    assert budget.left(19.9) == 9
    assert budget.left(20.0) == 10


def test_to_ask_in_vain_is_no_silence() -> None:
    budget = Budget(0.2, 10)
    withdrawals(budget, 0.0)
    for now in range(5, 100, 5):
        assert not budget.withdraw(float(now))
    assert budget.left(104.9) == 0


def test_what_is_left_can_be_looked_at_as_often_as_one_likes() -> None:
    budget = Budget(0.2, 3)
    deposits(budget, 5, 0.0)
    assert [budget.left(float(now)) for now in (0, 1, 1, 2, 12, 12)] == [4, 4, 4, 4, 3, 3]


def test_a_budget_of_nothing_buys_nothing() -> None:
    budget = Budget(0.0, 0)
    deposits(budget, 1000, 0.0)
    assert budget.left(0.0) == 0
    assert not budget.withdraw(0.0)
    assert not budget.withdraw(1000.0)


def test_a_clock_that_stands_still_or_goes_back_does_no_harm() -> None:
    budget = Budget(0.2, 1)
    deposits(budget, 5, 100.0)
    deposits(budget, 5, 40.0)
    assert withdrawals(budget, 90.0) == 3
    assert budget.left(50.0) == 0


@pytest.mark.parametrize("rate", [0.5, 1, 3, 50, 400])
@pytest.mark.parametrize("retries", [1, 2, 9])
@pytest.mark.parametrize("seconds", [1, 60])
def test_when_all_fails_the_upstream_sees_a_fifth_more_and_ten(rate: float, retries: int, seconds: int) -> None:
    rng = random.Random(rate * retries)
    budget = Budget(0.2, 10)
    requests = round(rate * seconds)
    attempts = 0
    for number in range(requests):
        now = 1000 + number / rate
        budget.deposit(now)
        attempts += 1 + withdrawals(budget, now + rng.random() / rate, most=retries)
    assert attempts <= 1.2 * requests + 10
    if seconds == 60 and rate >= 3:
        assert attempts >= 1.15 * requests + 9, "what has been earned is also had"


# Any history, in steps of a time that may be short or long beside the window.

EVENTS = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), st.floats(0, 0.5), st.floats(0, 30)),
        st.sampled_from(["deposit", "deposit", "deposit", "withdraw"]),
        st.integers(1, 20),
    ),
    max_size=60,
)
SHARES = st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.3, 0.7, 1.0, 2.0])


@given(events=EVENTS, ratio=SHARES, reserve=st.sampled_from([0.0, 0.5, 1.0, 3.0, 10.0]), window=st.floats(0.5, 20))
@example(
    events=[(0.0, "deposit", 5), (8.495346427522907, "withdraw", 1)], ratio=0.1, reserve=0.5, window=8.495346427522907
)
@settings(deadline=None)
def test_no_history_buys_more_than_was_earned_and_a_reserve_for_each_silence(
    events: list[tuple[float, str, int]], ratio: float, reserve: float, window: float
) -> None:
    budget = Budget(ratio, reserve, window)
    now, asked_at = 100.0, None
    requests, granted, silences = 0, 0, 0
    for passed, what, times in events:
        now += passed
        if what == "deposit":
            deposits(budget, times, now)
            requests += times
            continue
        silences += asked_at is not None and now - asked_at >= window
        asked_at = now
        had = budget.left(now)
        bought = withdrawals(budget, now, most=times)
        assert bought == min(times, had)
        granted += bought
        earned = Fraction(str(ratio)) * requests
        assert granted <= earned + Fraction(str(reserve)) * (1 + silences)


class Reference:
    """Every request's coin by itself, in whole seconds, which the tenths of the window are exact about."""

    def __init__(self, ratio: Fraction, reserve: Fraction) -> None:
        self.ratio = ratio
        self.reserve = self.full = reserve
        self.coins: list[tuple[int, Fraction]] = []
        self.asked_at = -1000

    def withdraw(self, now: int) -> bool:
        if now - self.asked_at >= 10:
            self.reserve = self.full
        self.asked_at = now
        self.coins = [(at, worth) for at, worth in self.coins if at > now - 10]
        if sum(worth for _, worth in self.coins) + self.reserve < 1:
            return False
        missing = Fraction(1)
        while missing and self.coins:
            at, worth = self.coins.pop(0)
            paid = min(worth, missing)
            missing -= paid
            if paid < worth:
                self.coins.insert(0, (at, worth - paid))
        self.reserve -= missing
        return True


@given(
    events=st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(1, 8)), max_size=80),
    ratio=SHARES,
    reserve=st.sampled_from([0.0, 0.5, 2.0]),
)
@settings(deadline=None)
def test_each_attempt_is_granted_or_refused_as_by_counting_every_coin(
    events: list[tuple[int, bool, int]], ratio: float, reserve: float
) -> None:
    budget = Budget(ratio, reserve)
    reference = Reference(Fraction(str(ratio)), Fraction(str(reserve)))
    now = 100
    for passed, is_request, times in events:
        now += passed
        for _ in range(times):
            if is_request:
                budget.deposit(now)
                reference.coins.append((now, reference.ratio))
            else:
                assert budget.withdraw(now) is reference.withdraw(now)
