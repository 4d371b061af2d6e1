"""A timer that is moved often and rings seldom.

Deadlines here move with every byte. A loop timer for each move would cost more than the byte, so an Alarm keeps one
timer, lets it fire at the old time, and only then looks whether the deadline has moved. Knows the loop, nothing else.
"""

import asyncio
from collections.abc import Callable


class Alarm:
    """Calls `ring` once when the loop's clock passes the time last `set`. Loop time, in seconds, throughout."""

    __slots__ = ("_handle", "_loop", "_ring", "_timer_at", "at")

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring: Callable[[], None] | None = ring
        self._handle: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self.at: float | None = None

    def set(self, at: float) -> None:
        """Ring at `at` instead of whatever was set. Moving to a later time costs two attributes and no timer."""
        self.at = at
        if self._handle is None or at < self._timer_at:
            self._arm(at)

    def clear(self) -> None:
        """Do not ring. The loop's timer may stay, and does nothing when it fires."""
        self.at = None

    def close(self) -> None:
        """Never ring again, and let go of what would be rung."""
        self.at = None
        self._ring = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self, at: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._timer_at = at
        self._handle = self._loop.call_at(at, self._fire)

    def _fire(self) -> None:
        self._handle = None
        if self.at is None or self._ring is None:
            return
        if self._loop.time() < self.at:
            self._arm(self.at)
            return
        self.at = None
        self._ring()
