"""Asks the engines of one upstream, every second or two, how much they have to do: their own metrics say so.

Others may send them work too, so what this gateway has in flight there is not the whole of it. It keeps what an engine
said on the replica (`Replica.load`) for as long as that is fresh, and nothing more: what follows from it is the balance's
to decide. Must not know calls, nor any kind of engine but by the names of its metrics.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator

import httpx
import msgspec
import structlog

from gateway.call import Clock
from gateway.fleet import Replica, Upstream
from gateway.kinds import Figures
from gateway.policy.balance import Load
from gateway.policy.breaker import Chance
from gateway.transport import PreparedRequest
from gateway.transport.whole import whole

JITTER = 0.1
"""Share of the interval by which a round comes earlier or later, so that gateways do not ask in step."""

LARGEST = 4 << 20
"""Bytes of a page of metrics; a larger one is not read."""

STALE = 3
"""Intervals after which what an engine said is forgotten."""

REST = 20
"""Rounds in which an engine is left in peace that has answered, and not with figures: it was started without them."""

_NEWLINE = 10
_PHASES = {"pool": 0.0}  # as for health checks: where calls have every connection, it is not the time to ask

_log = structlog.get_logger("gateway.fleet")


class LoadSettings(msgspec.Struct, frozen=True):
    """Where metrics are, from the root of the host, and seconds between looks; a look that takes as long has failed.

    `port`: if it is not the one that the kind of engine has them on.
    """

    path: str = "/metrics"
    interval: float = 1.5
    port: int | None = None


class Said(msgspec.Struct):
    """What one page of metrics says: requests that run and that wait, and the share of the KV cache in use.

    `done`: requests since the engine's start, and the batches in which they were worked on.
    """

    running: float | None
    waiting: float
    kv: float | None = None
    done: tuple[float, float] | None = None


def read(page: bytes, figures: Figures) -> Said | None:
    """What a page says in these names; None where it does not tell of requests. Of several engines, requests are summed.

    Each engine of a data-parallel server has a KV cache of its own, and the fullest is the one that counts.
    """
    running, waiting = _first(page, figures.running), _first(page, figures.waiting)
    if not waiting or (figures.running and not running):
        return None
    kv = _first(page, figures.kv)
    done, batches = _first(page, figures.done), _first(page, figures.batches)
    return Said(
        sum(running) if figures.running else None,
        sum(waiting),
        min(max(kv), 1.0) if kv else None,
        (sum(done), sum(batches)) if done and batches else None,
    )


def _first(page: bytes, names: Iterable[str]) -> list[float]:
    """The samples of the first family that has any."""
    return next((values for name in names if (values := list(_samples(page, name.encode())))), [])


def _samples(page: bytes, name: bytes) -> Iterator[float]:
    """The values of one family: only the lines with its name are looked at, for pages are long and looks are many."""
    at = page.find(name)
    while at >= 0:
        end = page.find(b"\n", at)
        line = page[at : end if end >= 0 else len(page)]
        if at == 0 or page[at - 1] == _NEWLINE:
            yield from _value(line[len(name) :])
        at = page.find(name, at + len(line))


def _value(rest: bytes) -> Iterator[float]:
    """The value behind a name and its labels, if this is where the name ends and it is a number that can be."""
    labels, brace, value = rest.rpartition(b"}")
    if (brace and labels[:1] != b"{") or not value[:1].isspace():
        return
    try:
        number = float(value.split(maxsplit=1)[0])
    except (ValueError, IndexError):
        return
    if math.isfinite(number) and number >= 0:
        yield number


class LoadWatch:
    """Watches one upstream's engines, those of the moment. `figures`: what they call their load."""

    def __init__(
        self,
        upstream: Upstream,
        figures: Figures,
        settings: LoadSettings,
        *,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]],
        chance: Chance,
    ) -> None:
        self._upstream = upstream
        self._figures = figures
        self._path = settings.path
        self._port = figures.port if settings.port is None else settings.port
        self._interval = settings.interval
        self._clock = clock
        self._sleep = sleep
        self._chance = chance
        self._done: dict[Replica, tuple[float, float]] = {}  # when it was last looked at
        self._resting: dict[Replica, int] = {}  # rounds that are left; 0 for whom has been told of and is asked

    async def run(self) -> None:
        """Look at all engines at once, wait, and so on until cancelled."""
        while True:
            await self.round()
            await self._sleep(self._interval * (1 + JITTER * (2 * self._chance() - 1)))

    async def round(self) -> None:
        """Look once at each engine that is not resting, and forget what is too old."""
        replicas = self._upstream.replicas
        self._done = {one: done for one in replicas if (done := self._done.get(one)) is not None}
        self._resting = {one: left for one in replicas if (left := self._resting.get(one)) is not None}
        asked = [replica for replica in replicas if not self._rests(replica)]
        await asyncio.gather(*(self._look(replica) for replica in asked))
        oldest = self._clock() - STALE * self._interval
        for replica in replicas:
            if replica.load is not None and replica.load.at < oldest:
                replica.load = None

    def _rests(self, replica: Replica) -> bool:
        left = self._resting.get(replica, 0)
        if left:
            self._resting[replica] = left - 1
        return left > 0

    async def _look(self, replica: Replica) -> None:
        """Ask, and keep what is said. An engine that does not answer keeps what it said last, until that is too old."""
        # What comes to it from now on it may have counted or not; counted twice is better than a stampede.
        inflight, at = replica.inflight, self._clock()
        try:
            async with asyncio.timeout(self._interval):
                said = await self._said(replica)
        except Exception:  # noqa: BLE001  # whatever it is, there are no figures, and the next look comes
            return
        if said is not None:
            load = Load(said.running, said.waiting, said.kv, inflight=inflight, at=at)
            load.batch = self._batch(replica, said)
            replica.load = load
            self._resting.pop(replica, None)
            return
        if replica not in self._resting:
            _log.info("engine_tells_no_load", upstream=self._upstream.name, replica=replica.name)
        self._resting[replica] = REST

    def _batch(self, replica: Replica, said: Said) -> float | None:
        """How many requests there were in a batch since the last look, or in the last ones that there were."""
        if said.done is None:
            return None
        done, batches = said.done
        done_before, batches_before = self._done.get(replica, (0.0, 0.0))
        self._done[replica] = said.done
        if batches > batches_before and done >= done_before:
            return (done - done_before) / (batches - batches_before)
        return None if replica.load is None or batches < batches_before else replica.load.batch

    async def _said(self, replica: Replica) -> Said | None:
        request = PreparedRequest(replica.endpoint.metrics(self._path, self._port), [], b"", {"timeout": _PHASES})
        response: httpx.Response = await self._upstream.transport.handle_async_request(request)
        try:
            page = await whole(response, LARGEST) if response.status_code == 200 else None
        finally:
            await response.aclose()
        return None if page is None else read(page, self._figures)
