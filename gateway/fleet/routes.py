"""What callers may ask for, and the upstreams that it leads to. Must not know how an upstream stands, nor who asks."""

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gateway.fleet.upstream import Upstream
from gateway.policy.quantile import Recent


class Target:
    """An upstream, the name that it knows the model by (None: the caller's), and its share of the calls."""

    __slots__ = ("model", "upstream", "weight")

    def __init__(self, upstream: Upstream, model: str | None = None, weight: float = 1.0) -> None:
        self.upstream = upstream
        self.model = model
        self.weight = weight


class Hedge(NamedTuple):
    """When a second attempt starts beside the first: after these seconds, or after the p95 of the latest calls (None)."""

    after: float | None


class Route:
    """A configured model: the name that callers use (or a pattern of it), its targets, and then its fallbacks in order."""

    __slots__ = ("hedge", "name", "recent", "stages", "targets")

    def __init__(self, name: str, targets: Sequence[Target], hedge: Hedge | None = None) -> None:
        self.name = name
        self.targets = targets
        self.stages = [[target for target in targets if target.weight > 0]]
        self.hedge = hedge
        self.recent = {False: Recent(), True: Recent()}  # seconds that plain replies, and first events, have taken

    def fall_back(self, route: "Route", model: str) -> None:
        """After all that there is already, try the targets of `route`, as if `model` had been asked for."""
        self.stages.append([Target(to.upstream, to.model or model, to.weight) for to in route.stages[0]])


def by_weight(targets: Sequence[Target], rng: random.Random) -> Target:
    """One target, by weight."""
    if len(targets) == 1:
        return targets[0]
    return rng.choices(targets, [target.weight for target in targets])[0]


class Fleet:
    """All upstreams and routes. A model's own name wins over a pattern, and a longer pattern over a shorter one."""

    def __init__(self, upstreams: Mapping[str, Upstream], routes: Sequence[Route]) -> None:
        self.upstreams = upstreams
        self.routes = {route.name: route for route in routes}
        patterns = [route for route in routes if route.name.endswith("*")]
        self._patterns = sorted(patterns, key=lambda route: -len(route.name))

    def resolve(self, model: str) -> Route | None:
        """The route that serves `model`, or None."""
        if (route := self.routes.get(model)) is not None and not model.endswith("*"):
            return route
        return next((route for route in self._patterns if model.startswith(route.name[:-1])), None)

    async def aclose(self) -> None:
        """Close every connection to every upstream."""
        for upstream in self.upstreams.values():
            await upstream.aclose()
