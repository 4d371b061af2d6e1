"""An upstream whose replicas are the addresses of one host name, which is looked up again and again.

What is known stays until something better is known: a name server that fails, or that has no address for the name, takes
no replica away. Must not know calls, nor how an address is connected to.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor
from functools import partial
from ipaddress import ip_address

from structlog.typing import FilteringBoundLogger

from gateway.fleet import Replica, Upstream
from gateway.policy.breaker import Chance

INTERVAL = 15.0
"""Seconds from one lookup to the next."""

JITTER = 0.2
"""Share of the interval by which a lookup comes earlier or later, so that gateways do not ask in step."""

LONGEST_LOOKUP = 10.0
"""Seconds that a lookup may take."""

Lookup = Callable[[], Awaitable[Iterable[str]]]
"""The addresses of the host name, in any order. Raises OSError."""


class Discovery:
    """Gives `upstream` the replicas that the latest lookup found. `make` is told an address, and makes a replica of it.

    Until the first answer the upstream keeps the replicas that it came with; then it has one for each address. A replica
    whose address is still there stays the same, and keeps what has been learnt of it.
    """

    def __init__(
        self,
        upstream: Upstream,
        make: Callable[[str], Replica],
        *,
        lookup: Lookup,
        sleep: Callable[[float], Awaitable[None]],
        chance: Chance,
        logger: FilteringBoundLogger,
    ) -> None:
        self._upstream = upstream
        self._make = make
        self._lookup = lookup
        self._sleep = sleep
        self._chance = chance
        self._log = logger
        self._known: dict[str, Replica] = {}  # by address
        self._failing = False

    async def run(self) -> None:
        """Look up, wait, and so on until cancelled."""
        while True:
            await self.refresh()
            await self._sleep(INTERVAL * (1 + JITTER * (2 * self._chance() - 1)))

    async def refresh(self) -> None:
        """Look up once. What goes wrong is logged when it begins, and not each time."""
        try:
            async with asyncio.timeout(LONGEST_LOOKUP):
                addresses = _sorted(await self._lookup())
        except Exception as failure:  # noqa: BLE001  # whatever it is, the replicas stay and the next lookup comes
            self._failed(type(failure).__name__)
            return
        if not addresses:
            self._failed("no address")
            return
        if self._failing:
            self._failing = False
            self._log.info("discovery_recovered", upstream=self._upstream.name)
        if addresses != list(self._known):
            self._replace(addresses)

    def _failed(self, reason: str) -> None:
        if not self._failing:
            self._failing = True
            kept = len(self._upstream.replicas)
            self._log.warning("discovery_failed", upstream=self._upstream.name, reason=reason, replicas=kept)

    def _replace(self, addresses: list[str]) -> None:
        before, known = self._upstream.replicas, self._known
        self._known = {address: known.get(address) or self._make(address) for address in addresses}
        after = list(self._known.values())
        self._upstream.replace(after)
        self._log.info(
            "replicas_changed",
            upstream=self._upstream.name,
            replicas=len(after),
            added=[replica.name for replica in after if replica not in before],
            removed=[replica.name for replica in before if replica not in after],
        )


def system_lookup(host: str, port: int, resolver: Executor) -> Lookup:
    """Ask the system's resolver, in a thread of `resolver`, for addresses of the families that this machine has itself."""
    ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)

    async def lookup() -> list[str]:
        found = await asyncio.get_running_loop().run_in_executor(resolver, ask)
        return [str(address[0]) for *_, address in found]

    return lookup


def _sorted(addresses: Iterable[str]) -> list[str]:
    """Each address once, in one way to write it, IPv4 first. Raises ValueError where one is none."""
    parsed = {ip_address(address) for address in addresses}
    return [str(address) for address in sorted(parsed, key=lambda address: (address.version, int(address)))]
