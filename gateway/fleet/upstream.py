"""Somewhere that requests can go: replicas that are all alike, and which of them a call is given.

Who is out is passed over, and never refused: whatever an upstream might still serve is tried when nothing better is left.
Only the limit on calls at once refuses. Must not know routes, callers or metrics.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import httpx
import msgspec

from gateway.admission import ConcurrencySettings, Queue
from gateway.dialects import Dialect
from gateway.fleet.replica import Replica
from gateway.policy.balance import Balance
from gateway.policy.breaker import Breaker, Chance
from gateway.policy.budget import Budget
from gateway.policy.retry import RetrySettings


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


class Rules(NamedTuple):
    """What holds for one upstream. `key`: the breaker of the gateway's key there, which one refusal opens.

    `hint`: what it most often means there that a key is refused.
    """

    timeouts: Timeouts
    retry: RetrySettings
    concurrency: ConcurrencySettings
    balance: Balance[Replica]
    key: Breaker
    hint: str = ""


class Upstream:
    """Somewhere that requests can go: replicas that are all alike, behind one transport."""

    def __init__(
        self,
        name: str,
        dialect: Dialect,
        replicas: Sequence[Replica],
        transport: httpx.AsyncBaseTransport,
        rules: Rules,
    ) -> None:
        self.name = name
        self.dialect = dialect
        self.replicas = replicas
        self.transport = transport
        self.timeouts = rules.timeouts
        self.plain_timeout = _phases(rules.timeouts, first_byte=rules.timeouts.reply)
        self.stream_timeout = _phases(rules.timeouts, first_byte=rules.timeouts.first_token)
        self.retry = rules.retry
        self.budget = Budget(rules.retry.budget, rules.retry.reserve)
        self.key = rules.key
        self.dry = False  # the key was last refused because its account has nothing left
        self.hint = rules.hint
        self.queue: Queue[Replica] = Queue(rules.concurrency, self.release)
        self._limit = rules.concurrency.limit
        self.balance = rules.balance

    def replace(self, replicas: Sequence[Replica]) -> None:
        """From now on it has these. Calls in flight at others end where they are; whoever waits for a place may go to new ones."""
        self.replicas = replicas
        for replica in replicas:
            while replica.inflight < self._limit and self.queue.hand(replica):
                replica.inflight += 1

    @property
    def panics(self) -> bool:
        """Over half of the replicas are out: then all are used, because the rest could not bear it."""
        return 2 * sum(replica.out for replica in self.replicas) > len(self.replicas)

    def choose(self, model: str, now: float, chance: Chance, tried: Collection[Replica] = ()) -> Replica | None:
        """A replica that is fit for a call and has a place free, not one of `tried`; None if there is none."""
        replicas, limit = self.replicas, self._limit
        if len(replicas) == 1 and not tried and replicas[0].inflight < limit and replicas[0].fit(model, now):
            return replicas[0]  # as most are, and most of the time
        fit = [one for one in replicas if one.inflight < limit and one.fit(model, now) and one not in tried]
        if len(fit) != len(replicas):
            fit = self._in_trouble(fit, model, now, tried)
        return self.balance(fit, now, chance) if fit else None

    def _in_trouble(self, fit: list[Replica], model: str, now: float, tried: Collection[Replica]) -> list[Replica]:
        """Whom to choose from where not all are fit: a probe is first, and in a panic everybody will do."""
        free = [one for one in self.replicas if one.inflight < self._limit and one not in tried]
        free = [one for one in free if one.cooling.get(model, 0.0) <= now]
        probe = [one for one in free if one.healthy and one.breaker.awaits_probe(now)]
        if probe and self.can_afford_a_probe(now):
            return probe[:1]
        return free if fit and self.panics else fit

    def can_afford_a_probe(self, now: float) -> bool:
        """Whether a call that fails where one was sent to find out could go elsewhere. Without retries none ever could."""
        return self.budget.left(now) >= 1 or not (self.retry.budget or self.retry.reserve)

    def is_full(self, replica: Replica) -> bool:
        """It has as many calls as it may have."""
        return replica.inflight >= self._limit

    def release(self, replica: Replica) -> None:
        """A call at `replica` has ended: its place goes to whoever waits for one, unless nobody is to go there any more."""
        if not (self.queue and replica in self.replicas and self.queue.hand(replica)):
            replica.inflight -= 1

    async def aclose(self) -> None:
        """Close every connection to it."""
        await self.transport.aclose()


def _phases(timeouts: Timeouts, *, first_byte: float) -> dict[str, float]:
    return {
        "connect": timeouts.connect,
        "pool": timeouts.pool,
        "write": timeouts.write,
        "first_byte": first_byte,
        "idle": timeouts.idle,
        "read": max(first_byte, timeouts.idle),  # all that httpx's own transport knows
    }
