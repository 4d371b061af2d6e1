"""Amounts of the last so many seconds, for the policies that look back.

A ring of buckets that is turned by whoever comes by, so that nothing runs in between and adding costs the same however
much was added. Must not know what is counted.
"""

BUCKETS = 10


class Window:
    """Whole amounts of the last `seconds` (more than 0), by tenths: nothing older counts, all of the last nine tenths does.

    `now` may stand still; should it go back, what is added is taken to happen at the latest time that was told.
    """

    __slots__ = ("_amounts", "_at", "_ends", "_span")

    def __init__(self, seconds: float) -> None:
        self._span = seconds / BUCKETS
        self._amounts = [0] * BUCKETS
        self._at = 0  # the present bucket
        self._ends = 0.0  # when it is over

    def add(self, amount: int, now: float) -> None:
        """Something happened."""
        if now >= self._ends:
            self._turn(now)
        self._amounts[self._at] += amount

    def total(self, now: float) -> int:
        """What has been added lately, less what has been taken."""
        if now >= self._ends:
            self._turn(now)
        return sum(self._amounts)

    def take(self, amount: int, now: float) -> int:
        """Take `amount` out, or as much as there is, the oldest first; how much it was."""
        if now >= self._ends:
            self._turn(now)
        missing = amount
        for step in range(1, BUCKETS + 1):
            bucket = (self._at + step) % BUCKETS
            taken = min(missing, self._amounts[bucket])
            self._amounts[bucket] -= taken
            missing -= taken
        return amount - missing

    def clear(self) -> None:
        """Forget everything."""
        self._amounts = [0] * BUCKETS

    def _turn(self, now: float) -> None:
        if now - self._ends >= self._span * BUCKETS:
            self.clear()
            self._ends = now + self._span
            return
        # Not a number of steps worked out beforehand: that may be rounded, and two looks at one time must agree.
        while now >= self._ends:
            self._at = (self._at + 1) % BUCKETS
            self._amounts[self._at] = 0
            self._ends += self._span
