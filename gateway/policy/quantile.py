"""How long something takes as a rule, by its latest samples: what a hedge waits for.

Must not know what is timed.
"""

import math
from bisect import bisect_left, insort
from collections import deque

FEWEST = 20  # under so many samples a high quantile is one outlier's figure


class Recent:
    """The latest `size` samples, kept in order too, so that asking costs nothing."""

    __slots__ = ("_ordered", "_samples", "_size")

    def __init__(self, size: int = 128) -> None:
        self._size = size
        self._samples: deque[float] = deque()
        self._ordered: list[float] = []

    def add(self, seconds: float) -> None:
        """One more sample, in place of the oldest if there is no room."""
        if len(self._samples) == self._size:
            del self._ordered[bisect_left(self._ordered, self._samples.popleft())]
        self._samples.append(seconds)
        insort(self._ordered, seconds)

    def quantile(self, q: float) -> float | None:
        """The least sample that a share `q` (0 to 1) of them do not exceed; None if there are too few to tell."""
        count = len(self._ordered)
        if count < FEWEST:
            return None
        return self._ordered[max(0, math.ceil(q * count) - 1)]
