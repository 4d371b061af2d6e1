"""How many more attempts there may be, so that a failing upstream gets more work by a fixed share at most.

Retries are paid from what callers' own requests earn. Must not know which attempt pays, or why there is another.
"""

import math

from gateway.policy.window import Window

_ATTEMPT = 1_000_000  # the price of one; sums of millionths are exact, and sums of 0.2 are not


class Budget:
    """What requests earn, for as long as it is fresh, and a reserve for when there are too few of them to earn enough.

    Each request earns `ratio` of an attempt, good for `window` seconds (more than 0). What an attempt costs beyond what
    has been earned is taken from the reserve of `reserve` attempts, which is whole again only once nobody has asked for
    an attempt, had or refused, for a whole window. So attempts granted are never more than ratio * requests + reserve,
    and one more reserve for each such silence: over a time, at most a reserve per window.
    """

    __slots__ = ("_asked_at", "_earned", "_earns", "_left", "_reserve", "_window")

    def __init__(self, ratio: float, reserve: float, window: float = 10.0) -> None:
        self._earns = round(ratio * _ATTEMPT)
        self._reserve = self._left = round(reserve * _ATTEMPT)
        self._window = window
        self._earned = Window(window)
        self._asked_at = -math.inf

    def deposit(self, now: float) -> None:
        """A caller's request began."""
        self._earned.add(self._earns, now)

    def withdraw(self, now: float) -> bool:
        """Take one more attempt. False: there is none to be had."""
        self._left = self._in_reserve(now)
        self._asked_at = now
        if self._earned.total(now) + self._left < _ATTEMPT:
            return False
        self._left -= _ATTEMPT - self._earned.take(_ATTEMPT, now)
        return True

    def left(self, now: float) -> float:
        """How many attempts would be granted now: a whole number. Takes nothing."""
        return float((self._earned.total(now) + self._in_reserve(now)) // _ATTEMPT)

    def _in_reserve(self, now: float) -> int:
        return self._reserve if now - self._asked_at >= self._window else self._left
