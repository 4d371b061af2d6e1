"""How late the event loop is: what every caller waits for in vain, and no timer of a single call can tell.

Must not know what keeps the loop busy.
"""

from collections.abc import Awaitable, Callable

from gateway.call import Clock
from gateway.observe.counts import Histogram

INTERVAL = 0.5
"""Seconds between two looks."""


class LoopLag:
    """Looks how much later than asked for it is woken."""

    def __init__(self, lag: Histogram, clock: Clock, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._lag = lag
        self._clock = clock
        self._sleep = sleep

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            due_at = self._clock() + INTERVAL
            await self._sleep(INTERVAL)
            self._lag.observe((), max(0.0, self._clock() - due_at))
