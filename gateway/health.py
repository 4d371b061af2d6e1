"""Asks the replicas of one upstream, between calls, whether they are well: a GET that costs nothing, never a completion.

It says what it finds (`Replica.healthy`) and nothing more: who then gets calls is the upstream's to decide. Must not know
calls, breakers, nor what else is thought of a replica.
"""

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import msgspec
from structlog.typing import FilteringBoundLogger

from gateway.fleet import Replica, Upstream
from gateway.policy.breaker import Chance
from gateway.transport import PreparedRequest, Target

JITTER = 0.1
"""Share of the interval by which a round comes earlier or later, so that gateways do not ask in step."""

LARGEST_ANSWER = 1 << 20
"""Bytes of an answer that are read, and thrown away, to keep its connection; a longer one is cut off."""

# A check does not queue: where calls have every connection, what comes of them tells more than it could.
_PHASES = {"pool": 0.0}


class HealthSettings(msgspec.Struct, frozen=True):
    """Seconds between checks, seconds that one may take, and how many failures in a row make a replica unhealthy."""

    interval: float = 10.0
    timeout: float = 3.0
    failures: int = 2


class HealthChecks:
    """The checks of one upstream's replicas, those of the moment. `ask`: the GET that a replica is asked by."""

    def __init__(
        self,
        upstream: Upstream,
        ask: Callable[[Replica], Target],
        settings: HealthSettings,
        *,
        sleep: Callable[[float], Awaitable[None]],
        chance: Chance,
        logger: FilteringBoundLogger,
    ) -> None:
        self._upstream = upstream
        self._ask = ask
        self._settings = settings
        self._sleep = sleep
        self._chance = chance
        self._log = logger
        self._failed: dict[Replica, int] = {}  # in a row

    async def run(self) -> None:
        """Check all replicas at once, wait, and so on until cancelled."""
        while True:
            replicas = self._upstream.replicas
            self._failed = {replica: self._failed.get(replica, 0) for replica in replicas}
            await asyncio.gather(*(self.check(replica) for replica in replicas))
            await self._sleep(self._settings.interval * (1 + JITTER * (2 * self._chance() - 1)))

    async def check(self, replica: Replica) -> bool:
        """Ask once, and set `replica.healthy` by it: whether it answered, to the end and in time.

        Any status under 500 will do, 401 and 404 too, for it takes a living server to say so; unless its kind has a word
        of its own for being unwell. Raises nothing but its cancellation.
        """
        try:
            async with asyncio.timeout(self._settings.timeout):
                status = await self._status(replica)
        except httpx.PoolTimeout:
            return replica.healthy
        except Exception as failure:  # noqa: BLE001  # whatever it is, it was not an answer
            return self._bad(replica, type(failure).__name__)
        return self._good(replica) if status < self._upstream.dialect.ailing else self._bad(replica, str(status))

    async def _status(self, replica: Replica) -> int:
        request = PreparedRequest(self._ask(replica), [], b"", {"timeout": _PHASES})
        response = await self._upstream.transport.handle_async_request(request)
        try:
            await _discard(response)
        finally:
            await response.aclose()
        return response.status_code

    def _good(self, replica: Replica) -> bool:
        self._failed[replica] = 0
        if not replica.healthy:
            replica.healthy = True
            self._log.info("replica_healthy", upstream=self._upstream.name, replica=replica.name)
        return True

    def _bad(self, replica: Replica, reason: str) -> bool:
        failed = self._failed[replica] = self._failed.get(replica, 0) + 1
        if replica.healthy and failed >= self._settings.failures:
            replica.healthy = False
            self._log.warning("replica_unhealthy", upstream=self._upstream.name, replica=replica.name, reason=reason)
        return False


async def _discard(response: httpx.Response) -> None:
    """Read an answer that nobody wants, so that its connection can be used again."""
    size = 0
    async for part in response.aiter_raw():
        size += len(part)
        if size > LARGEST_ANSWER:
            return
