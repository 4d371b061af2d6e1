"""How late the loop is, by a clock that is set."""

import asyncio

import pytest

from gateway.observe.counts import Histogram
from gateway.observe.lag import INTERVAL, LoopLag


async def test_what_is_counted_is_how_much_later_than_asked_for_it_is_woken() -> None:
    now = 100.0
    late = [0.0, 0.25, 0.003, -0.0004]  # uvloop's timers may ring a little early
    counted = Histogram("lag", "Lag.", (), (0.001, 0.1, 1.0))

    async def sleep(seconds: float) -> None:
        nonlocal now
        assert seconds == INTERVAL
        if not late:
            raise asyncio.CancelledError
        now += seconds + late.pop(0)

    with pytest.raises(asyncio.CancelledError):
        await LoopLag(counted, lambda: now, sleep).run()
    (family,) = counted.collect()
    values = {sample.labels.get("le", sample.name): sample.value for sample in family.samples}
    assert values == {"0.001": 2, "0.1": 3, "1.0": 4, "+Inf": 4, "lag_count": 4, "lag_sum": pytest.approx(0.253)}
