"""The order in which one call tries places, decided anew after each failure by how the fleet stands then.

First a target by weight; another replica of that upstream once; the next target; the fallback models in order; then
whatever has not been tried; then the same place again, after a wait. Whoever is out comes last. It chooses and does
nothing: no I/O, no time but what it is told. Must not know what an attempt is, nor what it costs.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple

from gateway.fleet import Replica, Route, Target, Upstream, by_weight
from gateway.outcome import Again


class Place(NamedTuple):
    """Where an attempt goes. `replica`: None where all are full, and the first one that becomes free will do.

    `model`: the name that the upstream knows it by. `again`: this call has failed there before.
    """

    target: Target
    model: str
    replica: Replica | None
    again: bool = False

    @property
    def upstream(self) -> Upstream:
        """Whose it is."""
        return self.target.upstream


class Plan:
    """The places of one call to `route` for `model`, and which of them have failed it."""

    __slots__ = ("_chance", "_model", "_refused", "_rng", "_route", "_tried", "_useless", "_visits")

    def __init__(self, route: Route, model: str, rng: random.Random) -> None:
        self._route = route
        self._model = model
        self._rng = rng
        self._chance = rng.random
        self._visits: dict[Target, int] = {}
        self._tried: dict[str, set[Replica]] = {}  # by the upstream's name of the model
        self._useless: set[Replica] = set()  # that would fail again in the same way
        self._refused: set[Upstream] = set()  # that do not take our key

    def first(self, now: float) -> Place:
        """Where the call begins."""
        target = by_weight(self._route.stages[0], self._rng)
        place = self._fit(target, now) or self._untried(now) or self._queued(now) or self._anyhow(now)
        return place or Place(target, target.model or self._model, None)  # all are out, and full: the queue says so

    def next(self, last: Place, now: float) -> Place | None:
        """Where it goes after it has failed at `last`, as `failed` was told; None if nowhere."""
        if self._visits.get(last.target) == 1 and (place := self._fit(last.target, now)) is not None:
            return place
        place = self._untried(now) or self._other_replica(now) or self._queued(now)
        return place or self._same(now) or self._anyhow(now)

    def beside(self, last: Place, now: float) -> Place | None:
        """Where a second attempt can go while the one at `last` is under way; None if nowhere."""
        if last.replica is None:
            return None
        self._useless.add(last.replica)
        place = self._fit(last.target, now) or self._untried(now)
        self._useless.remove(last.replica)
        return place

    def failed(self, place: Place, again: Again) -> None:
        """It was tried there, and may be tried `again`."""
        self._visits[place.target] = self._visits.get(place.target, 0) + 1
        if place.replica is None:
            return
        self._tried.setdefault(place.model, set()).add(place.replica)
        if again is not Again.ANYWHERE:
            self._useless.add(place.replica)
        if again is Again.OTHER_UPSTREAM:
            self._refused.add(place.upstream)

    def _untried(self, now: float) -> Place | None:
        """A target that has not been tried: of this stage by weight, else of the next."""
        for stage in self._route.stages:
            left = [target for target in stage if target not in self._visits]
            while left:
                target = by_weight(left, self._rng)
                if (place := self._fit(target, now)) is not None:
                    return place
                left.remove(target)
        return None

    def _other_replica(self, now: float) -> Place | None:
        return next((place for target in self._all() if (place := self._fit(target, now))), None)

    def _queued(self, now: float) -> Place | None:
        """An upstream that would serve the call if it had a place free."""
        for target in self._all():
            upstream, model = target.upstream, self._name(target)
            if upstream.key.closed and any(one.fit(model, now) and upstream.is_full(one) for one in upstream.replicas):
                return Place(target, model, None)
        return None

    def _same(self, now: float) -> Place | None:
        """Where it has failed already, and might not fail again."""
        for target in self._all():
            if target in self._visits and target.upstream.key.closed:
                model = self._name(target)
                if (replica := target.upstream.choose_anyhow(model, now, self._chance, self._useless)) is not None:
                    return Place(target, model, replica, again=replica in self._tried.get(model, ()))
        return None

    def _anyhow(self, now: float) -> Place | None:
        """Somewhere that is out, because nothing else is left."""
        for target in self._all():
            model = self._name(target)
            tried = self._useless | self._tried.get(model, set())
            if (replica := target.upstream.choose_anyhow(model, now, self._chance, tried)) is not None:
                return Place(target, model, replica)
        return None

    def _fit(self, target: Target, now: float) -> Place | None:
        upstream = target.upstream
        if not upstream.key.closed and not self._may_probe_key(upstream, now):
            return None
        model = self._name(target)
        tried = self._tried.get(model)
        if self._useless:
            tried = self._useless if tried is None else tried | self._useless
        replica = upstream.choose(model, now, self._chance, tried or ())
        return None if replica is None else Place(target, model, replica)

    def _may_probe_key(self, upstream: Upstream, now: float) -> bool:
        return upstream not in self._refused and upstream.key.awaits_probe(now) and upstream.budget.left(now) >= 1

    def _all(self) -> Iterator[Target]:
        targets = (target for stage in self._route.stages for target in stage)
        return (target for target in targets if target.upstream not in self._refused)

    def _name(self, target: Target) -> str:
        return target.model or self._model
