"""The order in which one call tries places, decided anew after each failure by how the fleet stands then.

First a target by weight; another replica of that upstream once; the next target; the fallback models in order; then
whatever has not been tried; then the same place again, after a wait. Whoever is out comes last. It chooses and does
nothing: no I/O, no time but what it is told. Must not know what an attempt is, nor what it costs.
"""

import random
from collections.abc import Collection, Iterator
from typing import NamedTuple

from gateway.fleet import Replica, Route, Target, Upstream, by_weight
from gateway.outcome import Again


class Place(NamedTuple):
    """Where an attempt goes. `replica`: None where all are full, and the first one that becomes free will do.

    `model`: the name that the upstream knows it by. `visited`: this call has failed there before.
    """

    target: Target
    model: str
    replica: Replica | None
    visited: bool = False

    @property
    def upstream(self) -> Upstream:
        """Whose it is."""
        return self.target.upstream


def begin(route: Route, model: str, rng: random.Random, now: float) -> Place:
    """Where a call begins. Most do so at the target that chance gives them, and need no plan."""
    stage = route.stages[0]
    target = stage[0] if len(stage) == 1 else by_weight(stage, rng)
    upstream = target.upstream
    if upstream.key.closed:
        name = target.model or model
        replica = upstream.choose(name, now, rng.random)
        if replica is not None:
            return Place(target, name, replica)
    return Plan(route, model, rng).first(now)


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
        place = self._untried(now) or self._queued(now) or self.anyhow(now)
        if place is not None:
            return place
        target = by_weight(self._route.stages[0], self._rng)
        return Place(target, self._name(target), None)  # all are out, and full: the queue says so

    def next(self, last: Place, now: float) -> Place | None:
        """Where it goes after it has failed at `last`, as `failed` was told; None if nowhere."""
        if self._visits.get(last.target) == 1 and (place := self._fit(last.target, now)) is not None:
            return place
        place = self._untried(now) or self._other_replica(now) or self._queued(now)
        return place or self._same(now) or self.anyhow(now) or self._same(now, full=True)

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

    def will_do(self, place: Place, replica: Replica, now: float) -> bool:
        """Whether what has waited for any replica at `place` is helped by a place on this one."""
        if replica in (self._useless if place.visited else self._spent(place.model)):
            return False
        replicas = place.upstream.replicas
        return replica.fit(place.model, now) or not any(one.fit(place.model, now) for one in replicas)

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
        """An upstream that would serve the call if it had a place free, if there is one whose queue has room."""
        places = [Place(target, self._name(target), None) for target in self._all() if self._would_do(target, now)]
        return next((place for place in places if place.upstream.queue.has_room), places[0] if places else None)

    def _would_do(self, target: Target, now: float) -> bool:
        """It has a replica that is fit; and full, or it would have been chosen."""
        upstream, model = target.upstream, self._name(target)
        spent = self._spent(model)
        return upstream.key.closed and any(one.fit(model, now) and one not in spent for one in upstream.replicas)

    def _same(self, now: float, *, full: bool = False) -> Place | None:
        """At a target where it has failed already, and might not fail again; None if there is no such place."""
        visited = [to for to in self._all() if to in self._visits and to.upstream.key.closed]
        return self._least_bad(visited, now, again=True, full=full)

    def anyhow(self, now: float) -> Place | None:
        """Where it has not been, though that is out, because nothing else is left; None if there is no such place."""
        return self._least_bad(list(self._all()), now)

    def _least_bad(self, targets: list[Target], now: float, *, again: bool = False, full: bool = False) -> Place | None:
        """Of all places with room (or all that are `full`), where it has been (`again`) or not, one that there is least against."""
        found: dict[tuple[bool, bool, float, bool, int], list[Replica]] = {}
        for order, target in enumerate(targets):
            upstream, model = target.upstream, self._name(target)
            for replica in upstream.replicas:
                been = replica in self._tried.get(model, ())
                if replica in self._useless or upstream.is_full(replica) is not full:
                    continue
                if (been and not again) or (full and not been):
                    continue
                cool_at = 0.0 if replica.out else max(replica.cooling.get(model, now), now)
                found.setdefault((not upstream.key.closed, replica.out, cool_at, been, order), []).append(replica)
        if not found:
            return None
        best = min(found)
        target = targets[best[-1]]
        chosen = target.upstream.balance(found[best], now, self._chance)
        return Place(target, self._name(target), chosen, visited=best[3])

    def _fit(self, target: Target, now: float) -> Place | None:
        upstream = target.upstream
        if upstream in self._refused:
            return None
        if not upstream.key.closed and not (upstream.key.awaits_probe(now) and upstream.can_afford_a_probe(now)):
            return None
        model = self._name(target)
        replica = upstream.choose(model, now, self._chance, self._spent(model))
        return None if replica is None else Place(target, model, replica)

    def _spent(self, model: str) -> Collection[Replica]:
        """Where it has failed, or would."""
        tried = self._tried.get(model)
        if not self._useless:
            return tried or ()
        return self._useless if tried is None else tried | self._useless

    def _all(self) -> Iterator[Target]:
        targets = (target for stage in self._route.stages for target in stage)
        return (target for target in targets if target.upstream not in self._refused)

    def _name(self, target: Target) -> str:
        return target.model or self._model
