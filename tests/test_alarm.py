"""The alarm on a loop whose clock is moved by hand, and whose timers are counted."""

import asyncio
import heapq
from collections.abc import Callable
from typing import cast

from gateway.alarm import Alarm


class Timer:
    """A timer of the loop below."""

    def __init__(self, at: float, callback: Callable[[], None]) -> None:
        self.at = at
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def __lt__(self, other: "Timer") -> bool:
        return self.at < other.at


class Loop:
    """Time and timers, and nothing else of a loop. `early`: how much too early timers fire, as some loops' do."""

    def __init__(self, early: float = 0.0) -> None:
        self.now = 100.0
        self.armed = 0
        self._early = early
        self._timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        self.armed += 1
        timer = Timer(when, callback)
        heapq.heappush(self._timers, timer)
        return timer

    @property
    def waiting(self) -> int:
        return sum(not timer.cancelled for timer in self._timers)

    def advance(self, to: float) -> None:
        while self._timers and self._timers[0].at - self._early <= to:
            timer = heapq.heappop(self._timers)
            self.now = max(self.now, timer.at - self._early)
            if not timer.cancelled:
                timer.callback()
            self._early = 0.0
        self.now = to


def on(loop: Loop, ring: Callable[[], None]) -> Alarm:
    return Alarm(cast("asyncio.AbstractEventLoop", loop), ring)


def alarm(loop: Loop) -> tuple[Alarm, list[float]]:
    rung: list[float] = []
    return on(loop, lambda: rung.append(loop.now)), rung


def test_it_rings_once_when_its_time_has_come() -> None:
    loop = Loop()
    watch, rung = alarm(loop)
    watch.set(105)
    assert watch.at == 105
    loop.advance(104.9)
    assert rung == []
    loop.advance(200)
    assert rung == [105]
    assert watch.at is None


def test_moving_it_later_costs_no_timer_and_it_rings_at_the_later_time() -> None:
    loop = Loop()
    watch, rung = alarm(loop)
    watch.set(105)
    for at in range(106, 1106):
        watch.set(at)
    assert loop.armed == 1
    loop.advance(1104)
    assert (rung, loop.armed) == ([], 2)
    loop.advance(2000)
    assert rung == [1105]


def test_moving_it_earlier_rings_earlier_and_only_then() -> None:
    loop = Loop()
    watch, rung = alarm(loop)
    watch.set(200)
    watch.set(105)
    loop.advance(300)
    assert rung == [105]
    assert loop.waiting == 0


def test_a_timer_that_fires_too_early_is_armed_again() -> None:
    loop = Loop(early=0.5)
    watch, rung = alarm(loop)
    watch.set(105)
    loop.advance(104.5)
    assert rung == []
    loop.advance(200)
    assert rung == [105]


def test_a_cleared_one_does_not_ring_until_it_is_set_again() -> None:
    loop = Loop()
    watch, rung = alarm(loop)
    watch.set(105)
    watch.clear()
    loop.advance(150)
    assert rung == []
    watch.set(160)
    loop.advance(170)
    assert rung == [160]


def test_one_that_is_set_again_before_the_old_timer_fires_uses_that_timer() -> None:
    loop = Loop()
    watch, rung = alarm(loop)
    watch.set(105)
    watch.clear()
    watch.set(110)
    assert loop.armed == 1
    loop.advance(120)
    assert rung == [110]


def test_it_can_be_set_again_as_it_rings() -> None:
    loop = Loop()
    rung: list[float] = []

    def ring() -> None:
        rung.append(loop.now)
        if len(rung) < 3:
            watch.set(loop.now + 10)

    watch = on(loop, ring)
    watch.set(110)
    loop.advance(500)
    assert rung == [110, 120, 130]


def test_a_closed_one_never_rings_and_holds_no_timer() -> None:
    loop = Loop()
    watch, rung = alarm(loop)
    watch.set(105)
    watch.close()
    watch.close()
    assert loop.waiting == 0
    watch.set(110)
    loop.advance(200)
    assert rung == []


def test_it_may_be_closed_as_it_rings() -> None:
    loop = Loop()
    rung: list[float] = []

    def ring() -> None:
        rung.append(loop.now)
        watch.close()

    watch = on(loop, ring)
    watch.set(105)
    loop.advance(500)
    assert rung == [105]
