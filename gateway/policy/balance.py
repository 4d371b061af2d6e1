"""Which of several replicas that could all take a call is to have it.

A balance is given those that may be chosen, at least one, and names one. Must not know why others are left out.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from math import exp
from typing import Any, Protocol, TypeVar

from gateway.policy.breaker import Chance

_LEAST_SHARE = 0.1
_FULL = 0.99  # share of a KV cache that is as good as all of it


class PeakEwma:
    """An average of seconds that goes up at once and comes down slowly, so that one bad answer is believed.

    `decay`: seconds (more than 0) in which all but 1/e of the past is forgotten. `cost`: the average when the latest
    sample came, at `at`; 0.0 before the first.
    """

    __slots__ = ("at", "cost", "decay")

    def __init__(self, decay: float = 10.0) -> None:
        self.decay = decay
        self.cost = 0.0
        self.at = 0.0

    def observe(self, seconds: float, now: float) -> None:
        """One more sample. The longer ago the last one, the more it counts."""
        if seconds < self.cost:
            seconds += (self.cost - seconds) * self._kept(now)
        self.cost = seconds
        self.at = now

    def read(self, now: float) -> float:
        """The average as it has faded since the latest sample; 0.0 if there was none."""
        return self.cost * self._kept(now)

    def _kept(self, now: float) -> float:
        return exp((self.at - now) / self.decay) if now > self.at else 1.0


class Load:
    """What an engine said of itself at one moment, `at`, when `inflight` of its calls were ours.

    `running`, `waiting`: requests, whoever sent them. `kv`: the share of its KV cache that is in use, 0 to 1, or None where
    it does not say. `batch`: how many it works on at once, likewise, for whoever looks at it. `beside`: requests that it had
    to do beside ours, a full cache counted as some more. With our calls of now that is what it has to do now: those begun
    since then count, those ended since then do not, and it is never less than ours, whatever it said.
    """

    __slots__ = ("at", "batch", "beside", "kv", "running", "waiting")

    def __init__(self, running: float | None, waiting: float, kv: float | None, *, inflight: int, at: float) -> None:
        self.running = running
        self.waiting = waiting
        self.kv = kv
        self.at = at
        self.batch: float | None = None
        # An engine that does not say what runs may have nothing but ours.
        self.beside = max((running or 0.0) + waiting - inflight, 0.0) + (0.0 if kv is None else _kv_penalty(kv))


def _kv_penalty(share: float) -> float:
    """A nearly full KV cache as so many requests more: under two up to 90 %, then ever more, up to 15."""
    share = min(max(share, 0.0), _FULL)
    return 0.15 * share / (1.0 - share)


class Balanced(Protocol):
    """What a balance sees of a replica. `latency`: to the first byte. `load`: what its engine said of late, if anything."""

    inflight: int
    weight: float
    latency: PeakEwma
    load: Load | None

    @property
    def name(self) -> str:
        """What it is ordered by."""

    def ramp(self, now: float) -> float:
        """The share of its weight that it gets by now: less than 1.0 if it has just come back."""


T = TypeVar("T", bound=Balanced)


class Balance(Protocol[T]):
    """A way to choose, with a memory of its own if it needs one: each upstream has its own."""

    def __call__(self, candidates: Sequence[T], now: float, chance: Chance) -> T:
        """One of the candidates, of which there is at least one."""


def ramp(returned_at: float | None, now: float, seconds: float) -> float:
    """The share of its weight for what came back at `returned_at`: from 0.1 to 1.0 in `seconds`; 1.0 if never out."""
    if returned_at is None or seconds <= 0:
        return 1.0
    passed = max(0.0, now - returned_at) / seconds
    return min(1.0, _LEAST_SHARE + (1.0 - _LEAST_SHARE) * passed)


class LeastLoad:
    """The less loaded of two at random, which spreads nearly as well as the least loaded of all and never stampedes.

    Load is (calls in flight + 1) * latency / share of the calls. Where there is no telling how fast one of the two is,
    latency is left out, so that a newcomer is neither starved nor flooded. Where both engines have said what they have to
    do, that counts instead of the calls in flight; with one of them silent it does not, for it would be the favourite.
    """

    __slots__ = ()

    def __call__(self, candidates: Sequence[T], now: float, chance: Chance) -> T:
        """The less loaded of two. That they come in any order settles ties."""
        count = len(candidates)
        if count == 1:
            return candidates[0]
        at = int(chance() * count)
        one = candidates[at]
        other = candidates[(at + 1 + int(chance() * (count - 1))) % count]
        return one if _is_no_heavier(one, other, now) else other


def _is_no_heavier(one: Balanced, other: Balanced, now: float) -> bool:
    ours, theirs = one.latency.read(now), other.latency.read(now)
    if not ours or not theirs:
        ours = theirs = 1.0
    # Idleness forgives until both are equal, and makes nobody faster than it was: a figure that went on fading
    # would draw a whole burst to one replica before its first answer could correct it.
    elif ours < theirs:
        ours = min(theirs, one.latency.cost)
    else:
        theirs = min(ours, other.latency.cost)
    busy: float = one.inflight
    others: float = other.inflight
    if one.load is not None and other.load is not None:
        busy += one.load.beside
        others += other.load.beside
    # Multiplied crosswise, for a share may be nothing.
    load = (busy + 1) * ours * other.weight * other.ramp(now)
    return load <= (others + 1) * theirs * one.weight * one.ramp(now)


class RoundRobin:
    """One after the other by name, whoever is there: the next is the first after the last chosen. Weights do not count.

    One that has just come back is passed over as often as its share is short of 1.0.
    """

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = ("", 0)

    def __call__(self, candidates: Sequence[T], now: float, chance: Chance) -> T:
        """Whose turn it is."""
        if len(candidates) == 1:
            return candidates[0]
        ordered = sorted(candidates, key=_place)
        start = bisect_right(ordered, self._last, key=_place)
        turns = ordered[start:] + ordered[:start]
        chosen = next((replica for replica in turns if _is_ready(replica, now, chance)), turns[0])
        self._last = _place(chosen)
        return chosen


def _place(replica: Balanced) -> tuple[str, int]:
    return replica.name, id(replica)


def _is_ready(replica: Balanced, now: float, chance: Chance) -> bool:
    share = replica.ramp(now)
    return share >= 1.0 or chance() < share


class Weighted:
    """At random, in proportion to their shares. One of weight 0 is chosen only where all are."""

    __slots__ = ()

    def __call__(self, candidates: Sequence[T], now: float, chance: Chance) -> T:
        """Any, by weight."""
        count = len(candidates)
        if count == 1:
            return candidates[0]
        sums = list(accumulate(replica.weight * replica.ramp(now) for replica in candidates))
        if not sums[-1]:
            return candidates[int(chance() * count)]
        return candidates[bisect_right(sums, chance() * sums[-1], hi=count - 1)]


BALANCES: dict[str, Callable[[], Balance[Any]]] = {
    "least_load": LeastLoad,
    "round_robin": RoundRobin,
    "weighted": Weighted,
}
