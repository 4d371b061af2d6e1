"""One address of an upstream, and how it stands: how busy, how quick, whether it is out.

Must not know which calls come to it or why. HTTP is here only as what is prepared once for every request.
"""

from collections.abc import Sequence
from enum import StrEnum

import httpx

from gateway.call import Clock, Kind
from gateway.dialects import Dialect
from gateway.policy.balance import Load, PeakEwma, ramp
from gateway.policy.breaker import Breaker, State
from gateway.transport import Target as Destination

USER_AGENT = b"gateway"
_MOST_DESTINATIONS = 1000  # of one replica; behind a pattern models' names are the callers'
_LONGEST_NAME = 256  # characters of a model's name for which anything is kept
_MOST_COOLING = 1000  # models of one replica, likewise


class Standing(StrEnum):
    """How a replica stands."""

    AVAILABLE = "available"
    COOLING = "cooling"  # it said that it has too much to do
    EJECTED = "ejected"  # its breaker is open
    PROBING = "probing"  # out, until one call has shown that it is well again
    UNHEALTHY = "unhealthy"  # its health check says so


class Endpoint:
    """One address of an upstream, with everything about a request to it that never changes made once.

    `address`: where to connect to, if that is not what the URL names.
    """

    __slots__ = ("_destinations", "_dialect", "_headers", "_url", "address", "name")

    def __init__(
        self, url: str, dialect: Dialect, headers: Sequence[tuple[str, str]], address: str | None = None
    ) -> None:
        parsed = httpx.URL(url)
        if address is not None:
            parsed = parsed.copy_with(host=address)
        self.name = parsed.netloc.decode("ascii")
        self.address = address
        self._url = url
        self._dialect = dialect
        self._headers = [*((name.encode(), value.encode()) for name, value in headers), (b"user-agent", USER_AGENT)]
        self._destinations: dict[tuple[Kind, str, bool], Destination] = {}

    def destination(self, kind: Kind, model: str, *, stream: bool) -> Destination | None:
        """Where a request of this kind goes, ready but for its body; None where the upstream has nothing of that kind."""
        known = self._destinations.get((kind, model, stream))
        return self._made(kind, model, stream=stream) if known is None else known

    def _made(self, kind: Kind, model: str, *, stream: bool) -> Destination | None:
        path = self._dialect.path(kind, model)
        if path is None:
            return None
        accept = b"text/event-stream" if stream else b"application/json"
        fields = [(b"content-type", b"application/json"), (b"accept", accept)]
        made = self._destination("POST", self._url + path, fields)
        if len(self._destinations) >= _MOST_DESTINATIONS:
            self._destinations.clear()
        if len(model) <= _LONGEST_NAME:
            self._destinations[kind, model, stream] = made
        return made

    def models(self) -> Destination | None:
        """Where it is asked for what it serves."""
        path = self._dialect.path("models", "")
        return None if path is None else self._get(self._url + path)

    def health(self, path: str | None) -> Destination:
        """Where it is asked how it is: at `path`, from the root of the host, or else where its kind is asked."""
        url = httpx.URL(self._url)
        return self._get(
            self._url + self._dialect.health if path is None else str(url.copy_with(raw_path=path.encode("ascii")))
        )

    def metrics(self, path: str, port: int | None) -> Destination:
        """Where its engine's metrics are. At a port of their own there is neither TLS nor a reason to show the key."""
        if port is None:
            return self.health(path)
        url = httpx.URL(self._url).copy_with(scheme="http", port=port, raw_path=path.encode("ascii"))
        return Destination("GET", url, [(b"user-agent", USER_AGENT), (b"accept", b"*/*")], address=self.address)

    def _get(self, url: str) -> Destination:
        return self._destination("GET", url, [(b"accept", b"application/json")])

    def _destination(self, method: str, url: str, fields: list[tuple[bytes, bytes]]) -> Destination:
        return Destination(method, httpx.URL(url), [*self._headers, *fields], address=self.address)


class Replica:
    """One endpoint, and how it stands: how busy, how quick, whether it is out. `slow_start`: seconds."""

    __slots__ = (
        "_clock",
        "_healthy",
        "_slow_start",
        "_well_at",
        "breaker",
        "cooling",
        "endpoint",
        "inflight",
        "latency",
        "load",
        "name",
        "weight",
    )

    def __init__(
        self, endpoint: Endpoint, breaker: Breaker, clock: Clock, slow_start: float, weight: float = 1.0
    ) -> None:
        self.endpoint = endpoint
        self.name = endpoint.name
        self.weight = weight
        self.inflight = 0
        self.latency = PeakEwma()
        self.load: Load | None = None  # what its engine said of late
        self.breaker = breaker
        self.cooling: dict[str, float] = {}  # until when, by the upstream's name of the model
        self._clock = clock
        self._slow_start = slow_start
        self._healthy = True
        self._well_at: float | None = None  # when its health check last found it well again

    @property
    def healthy(self) -> bool:
        """What its health check says; True where there is none."""
        return self._healthy

    @healthy.setter
    def healthy(self, healthy: bool) -> None:
        if healthy and not self._healthy:
            self._well_at = self._clock()
        self._healthy = healthy

    def standing(self, now: float, model: str | None = None) -> Standing:
        """How it stands, for `model`, or for any."""
        if not self._healthy:
            return Standing.UNHEALTHY
        if not self.breaker.closed:
            return Standing.EJECTED if self.breaker.state(now) is State.OPEN else Standing.PROBING
        untils = self.cooling.values() if model is None else (self.cooling.get(model, 0.0),)
        return Standing.COOLING if any(until > now for until in untils) else Standing.AVAILABLE

    def fit(self, model: str, now: float) -> bool:
        """Whether it is to be given calls as any other."""
        if not (self.breaker.closed and self._healthy):
            return False
        return not self.cooling or self.cooling.get(model, 0.0) <= now

    @property
    def out(self) -> bool:
        """Whether it is ejected, or not yet known to be well again."""
        return not (self.breaker.closed and self._healthy)

    def ramp(self, now: float) -> float:
        """The share of its weight that it gets: a replica that has just come back has cold caches."""
        back = self.breaker.returned_at
        since = self._well_at if back is None or (self._well_at or 0.0) > back else back
        return 1.0 if since is None else ramp(since, now, self._slow_start)

    def cool(self, model: str, until: float, now: float) -> None:
        """Leave it alone for `model`, for a time."""
        if len(self.cooling) >= _MOST_COOLING and model not in self.cooling:
            self.cooling = {name: then for name, then in self.cooling.items() if then > now}
        if len(self.cooling) < _MOST_COOLING or model in self.cooling:
            self.cooling[model] = max(until, self.cooling.get(model, 0.0))

    def __repr__(self) -> str:
        return f"<Replica {self.name}: {self.inflight} in flight>"
