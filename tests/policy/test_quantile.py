"""The latest samples: what a share of them do not exceed."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.policy.quantile import FEWEST, Recent


def recent(samples: list[float], size: int = 128) -> Recent:
    made = Recent(size)
    for sample in samples:
        made.add(sample)
    return made


def test_too_few_samples_tell_nothing() -> None:
    assert recent([]).quantile(0.95) is None
    assert recent([1.0] * (FEWEST - 1)).quantile(0.95) is None
    assert recent([1.0] * FEWEST).quantile(0.95) == 1.0


@pytest.mark.parametrize(("q", "sample"), [(0.0, 1), (0.01, 1), (0.5, 50), (0.95, 95), (0.951, 96), (1.0, 100)])
def test_a_quantile_is_the_least_sample_that_so_many_do_not_exceed(q: float, sample: int) -> None:
    assert recent([float((number * 37) % 100 + 1) for number in range(100)]).quantile(q) == sample


def test_only_the_latest_samples_count() -> None:
    assert recent([60.0] * 128 + [0.1] * 127).quantile(0.95) == 0.1
    assert recent([60.0] * 128 + [0.1] * 127).quantile(1.0) == 60.0
    assert recent([60.0] * 128 + [0.1] * 128).quantile(1.0) == 0.1


@given(
    samples=st.lists(st.floats(0, 600), min_size=FEWEST, max_size=120), size=st.integers(FEWEST, 60), q=st.floats(0, 1)
)
@settings(deadline=None)
def test_any_samples_give_what_sorting_them_gives(samples: list[float], size: int, q: float) -> None:
    latest = sorted(samples[-size:])
    assert recent(samples, size).quantile(q) == latest[max(0, math.ceil(q * len(latest)) - 1)]
