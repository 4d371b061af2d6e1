"""What the config promises, as it stands now: routes (what callers ask for), upstreams and their replicas (where it goes).

State lives here and nowhere else: who is how busy. What a call borrows is a Lease, settled once, synchronously. Must not
know HTTP messages, callers or metrics.
"""

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import httpx
import msgspec

from gateway.call import Kind
from gateway.dialects import Dialect
from gateway.transport import Target as Destination

USER_AGENT = b"gateway"


class Timeouts(msgspec.Struct, frozen=True):
    """Seconds that each phase of a call may take; the config file documents them one by one."""

    connect: float = 5.0
    pool: float = 1.0
    write: float = 30.0
    first_token: float = 60.0
    reply: float = 300.0
    idle: float = 120.0
    total: float = 600.0
    stream: float = 1800.0
    ping: float = 15.0


class Replica:
    """One address of an upstream, with everything about a request to it that never changes made once."""

    __slots__ = ("_destinations", "inflight", "name")

    def __init__(self, url: str, dialect: Dialect, headers: Sequence[tuple[str, str]]) -> None:
        self.name = httpx.URL(url).netloc.decode("ascii")
        self.inflight = 0
        common = [*((name.encode(), value.encode()) for name, value in headers), (b"user-agent", USER_AGENT)]
        self._destinations: dict[tuple[Kind, bool], Destination] = {}
        for kind in ("chat", "completions", "embeddings"):
            for stream in (False, True):
                accept = b"text/event-stream" if stream else b"application/json"
                self._destinations[kind, stream] = Destination(
                    "POST",
                    httpx.URL(url + dialect.path(kind)),
                    [*common, (b"content-type", b"application/json"), (b"accept", accept)],
                )
        self._destinations["models", False] = Destination(
            "GET", httpx.URL(url + dialect.path("models")), [*common, (b"accept", b"application/json")]
        )

    def destination(self, kind: Kind, *, stream: bool) -> Destination:
        """Where a request of this kind goes, ready but for its body."""
        return self._destinations[kind, stream]


class Lease:
    """One call's place at a replica. Settling it twice is settling it once."""

    __slots__ = ("_open", "replica")

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self._open = True
        replica.inflight += 1

    def settle(self) -> None:
        """Give the place back."""
        if self._open:
            self._open = False
            self.replica.inflight -= 1


class Upstream:
    """Somewhere that requests can go: replicas that are all alike, behind one transport."""

    def __init__(
        self,
        name: str,
        dialect: Dialect,
        replicas: Sequence[Replica],
        transport: httpx.AsyncBaseTransport,
        timeouts: Timeouts,
    ) -> None:
        self.name = name
        self.dialect = dialect
        self.replicas = replicas
        self.transport = transport
        self.timeouts = timeouts
        self.plain_timeout = _phases(timeouts, first_byte=timeouts.reply)
        self.stream_timeout = _phases(timeouts, first_byte=timeouts.first_token)

    def lease(self, rng: random.Random) -> Lease:
        """A place at the replica with the fewest calls in flight; ties are broken at random."""
        if len(self.replicas) == 1:
            return Lease(self.replicas[0])
        fewest = min(replica.inflight for replica in self.replicas)
        return Lease(rng.choice([replica for replica in self.replicas if replica.inflight == fewest]))


def _phases(timeouts: Timeouts, *, first_byte: float) -> dict[str, float]:
    return {
        "connect": timeouts.connect,
        "pool": timeouts.pool,
        "write": timeouts.write,
        "first_byte": first_byte,
        "idle": timeouts.idle,
        "read": max(first_byte, timeouts.idle),  # all that httpx's own transport knows
    }


class Target(NamedTuple):
    """An upstream, the name that it knows the model by (None: the caller's), and its share of the calls."""

    upstream: Upstream
    model: str | None
    weight: float


class Route:
    """A configured model: the name that callers use (or a pattern of it), and its targets."""

    __slots__ = ("_weights", "name", "targets")

    def __init__(self, name: str, targets: Sequence[Target]) -> None:
        self.name = name
        self.targets = targets
        self._weights = [target.weight for target in targets]

    def choose(self, rng: random.Random) -> Target:
        """One target, by weight."""
        if len(self.targets) == 1:
            return self.targets[0]
        return rng.choices(self.targets, self._weights)[0]


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
            await upstream.transport.aclose()
