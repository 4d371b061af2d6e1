"""When something that fails is left alone, for how long, and what it takes to come back.

A breaker counts verdicts and says what follows. It must not know what it guards (a replica, an upstream's key), what a
verdict rests on, or who obeys: calls may go to what is out when nothing else is left, and their ends are then ignored.

    closed --failed too often--> open --its time is over--> half-open --a probe is answered--> closed
                                  ^                             |
                                  +-------- the probe fails ----+
"""

import math
from collections.abc import Callable
from enum import StrEnum

import msgspec

from gateway.policy.window import Window

Chance = Callable[[], float]
"""Uniform in [0, 1)."""


class BreakerSettings(msgspec.Struct, frozen=True):
    """When to eject, and for how long. Seconds are more than 0.

    `failures`: so many in a row eject. So does a share under `served` of at least `volume` calls that ended within
    `window` seconds. The first time out is `ejection` seconds, the n-th n times as long, never over `max_ejection`;
    `jitter` spreads it over plus and minus that share of it.
    """

    failures: int = 5
    served: float = 0.8
    volume: int = 10
    window: float = 10.0
    ejection: float = 30.0
    max_ejection: float = 300.0
    jitter: float = 0.1


class State(StrEnum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Every call begins here and ends here once, by `served`, `failed` or `abandoned`, with the epoch that it began in.

    The end of a call of another epoch is ignored: it began before the last ejection, or went to what was out.

    `closed`: calls may go there as they like; the only thing that most calls look at.
    `epoch`: rises when it ejects and when a probe begins.
    `ejections`: how many times out count: the next is as many times as long, and once more. It falls by one for each
    `ejection` seconds in service without a failure, applied when the next failure comes, and rises no further than the
    time out does.
    `returned_at`: when it last came back; None if it has never been out.
    """

    __slots__ = (
        "_calm_since",
        "_chance",
        "_failed",
        "_most",
        "_probing",
        "_served",
        "_settings",
        "_streak",
        "_until",
        "closed",
        "ejections",
        "epoch",
        "returned_at",
    )

    def __init__(self, settings: BreakerSettings, chance: Chance) -> None:
        self._settings = settings
        self._chance = chance
        self._served = Window(settings.window)
        self._failed = Window(settings.window)
        self._streak = 0
        self._most = math.ceil(settings.max_ejection / settings.ejection)
        self._calm_since = 0.0
        self._until = 0.0  # while not closed: when the time out ends
        self._probing = False  # never while closed
        self.closed = True
        self.epoch = 0
        self.ejections = 0
        self.returned_at: float | None = None

    def state(self, now: float) -> State:
        """Where it stands; half-open also while its probe is under way."""
        if self.closed:
            return State.CLOSED
        return State.HALF_OPEN if now >= self._until else State.OPEN

    def awaits_probe(self, now: float) -> bool:
        """Whether the next call to begin is its probe."""
        return not self.closed and not self._probing and now >= self._until

    def back_at(self) -> float | None:
        """When its time out ends, or ended; None if it is closed."""
        return None if self.closed else self._until

    def begin(self, now: float) -> int:
        """A call begins, whether or not it should: the epoch that its end is to be told with."""
        if self.closed:
            return self.epoch
        if self._probing:
            return self.epoch - 1  # the present one is the probe's alone
        if now >= self._until:
            self._probing = True
            self.epoch += 1
        return self.epoch

    def answered(self, epoch: int, now: float) -> bool:
        """The call's first event, or its whole reply, is here. True if it was the probe, and so has closed the breaker."""
        if not self._probing or epoch != self.epoch:
            return False
        self._close(now)
        return True

    def served(self, epoch: int, now: float) -> None:
        """The call ended well."""
        if epoch != self.epoch:
            return
        if self.closed:
            self._streak = 0
            self._served.add(1, now)
        elif self._probing:
            self._close(now)

    def failed(self, epoch: int, now: float) -> bool:
        """The call ended badly. True if this ejects."""
        if epoch != self.epoch:
            return False
        if self.closed:
            self._end_calm(now)
            self._streak += 1
            self._failed.add(1, now)
            if not self._fails_too_often(now):
                return False
        elif not self._probing:
            return False
        self._eject(now)
        return True

    def abandoned(self, epoch: int) -> None:
        """The call ended without a verdict. If it was the probe, the next call is."""
        if epoch == self.epoch:
            self._probing = False

    def _fails_too_often(self, now: float) -> bool:
        if self._streak >= self._settings.failures:
            return True
        served = self._served.total(now)
        total = served + self._failed.total(now)
        return total >= self._settings.volume and served / total < self._settings.served

    def _eject(self, now: float) -> None:
        self.closed = self._probing = False
        self.epoch += 1
        # Counting on beyond the longest time out would only take as long to be forgiven.
        self.ejections = min(self.ejections + 1, self._most)
        longest = self._settings.max_ejection
        seconds = min(longest, self._settings.ejection * self.ejections)
        spread = 1 + self._settings.jitter * (2 * self._chance() - 1)
        self._until = now + min(longest, seconds * spread)

    def _close(self, now: float) -> None:
        self.closed = True
        self._probing = False
        self._streak = 0
        self._served.clear()
        self._failed.clear()
        self.returned_at = self._calm_since = now

    def _end_calm(self, now: float) -> None:
        forgiven = int((now - self._calm_since) / self._settings.ejection)
        self.ejections = max(0, self.ejections - max(0, forgiven))
        self._calm_since = now
