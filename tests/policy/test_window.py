"""The window: what happened lately, against a list of all that ever happened."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.policy.window import Window


@pytest.mark.parametrize(("later", "total"), [(0.0, 7), (8.99, 7), (10.0, 0), (10.5, 0), (19.99, 0), (1e9, 0)])
def test_what_is_older_than_the_window_is_gone(later: float, total: int) -> None:
    window = Window(10.0)
    window.add(7, 1000.0)
    assert window.total(1000.0 + later) == total
    assert window.take(9, 1000.0 + later) == total


def test_what_is_added_each_second_adds_up_to_ten_of_them() -> None:
    window = Window(10.0)
    totals = []
    for now in range(1000, 1015):
        totals.append(window.total(now))
        window.add(1, now)
    assert totals == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9, 9, 9]


def test_a_window_that_is_cleared_goes_on() -> None:
    window = Window(10.0)
    window.add(7, 3.0)
    window.clear()
    assert window.total(3.0) == 0
    window.add(2, 3.5)
    assert window.total(12.0) == 2


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 12), st.sampled_from(["add", "take", "total", "clear"]), st.integers(0, 9)),
        max_size=60,
    )
)
@settings(deadline=None)
def test_any_history_is_counted_as_by_a_list(steps: list[tuple[int, str, int]]) -> None:
    window = Window(10.0)
    added: list[int] = []  # when, once for each one: whole seconds fall on the tenths
    now = 0
    for passed, what, amount in steps:
        now += passed
        added = [at for at in added if at > now - 10]
        if what == "add":
            window.add(amount, now)
            added += [now] * amount
        elif what == "take":
            assert window.take(amount, now) == min(amount, len(added))
            added = added[amount:]
        elif what == "total":
            assert window.total(now) == len(added)
        else:
            window.clear()
            added = []


@given(st.lists(st.floats(0, 3), min_size=1), st.floats(0.1, 60))
@settings(deadline=None)
def test_all_of_nine_tenths_counts_and_nothing_older_than_the_whole(gaps: list[float], seconds: float) -> None:
    window = Window(seconds)
    times: list[float] = []
    now = 100.0
    for gap in gaps:
        now += gap
        window.add(1, now)
        times.append(now)
        slack = 1e-9 * now
        least = sum(at > now - 0.9 * seconds + slack for at in times)
        most = sum(at > now - seconds - slack for at in times)
        assert least <= window.total(now) <= most


@given(st.lists(st.floats(0, 30), min_size=1), st.floats(0.1, 60))
@settings(deadline=None)
def test_two_looks_at_one_time_agree(gaps: list[float], seconds: float) -> None:
    window = Window(seconds)
    now = 100.0
    for gap in gaps:
        window.add(1, now)
        now += min(gap, seconds)
        total = window.total(now)
        assert window.total(now) == total
        assert window.take(total + 1, now) == total
