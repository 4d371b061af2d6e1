"""Takes a Call to an upstream and comes back with a reply, or with the one error that says why there is none.

The first attempt costs nothing of the machinery for the others: only when it has failed does tenacity's loop begin, with
that attempt as its first. What may still be tried is the plan's to say; this file keeps to the limits: attempts, time,
and the budget of the upstream at which the call began. Must not know callers or ASGI.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from gateway import errors
from gateway.call import Call, Clock, Exchange
from gateway.fleet import Lease, Replica, Route, Timeouts, Upstream
from gateway.flow.attempt import ABANDONED, Attempt, Plain, Stream, Until
from gateway.flow.hedge import Trying, race
from gateway.flow.plan import Place, Plan
from gateway.outcome import Again, end_reason, reaction
from gateway.policy.retry import FullJitter, keep_to

Sleep = Callable[[float], Awaitable[None]]
Watch = Callable[[Timeouts], None]

HEDGED_QUANTILE = 0.95


class Dispatch:
    """Sends calls to upstreams. Chance, time and waiting are arguments, so that tests decide what they do."""

    def __init__(self, rng: random.Random, clock: Clock, sleep: Sleep = asyncio.sleep) -> None:
        self.rng = rng
        self.clock = clock
        self.sleep = sleep

    async def __call__(
        self, call: Call, route: Route, exchange: Exchange, watched_by: Watch | None = None
    ) -> Plain | Stream:
        """The reply to `call` from one of the places that `route` leads to. Raises GatewayError.

        `watched_by` is told the timeouts of each upstream that is tried.
        """
        tries = Tries(self, call, route, exchange, watched_by)
        try:
            if route.hedge is not None:
                return await tries.hedged()
            return (await tries.attempt(tries.place)).answer
        except errors.GatewayError as failure:
            return await tries.again(failure)


class Tries:
    """The attempts of one call: where it is, where it goes next, and what it may still spend."""

    __slots__ = (
        "_began_at",
        "_budget",
        "_call",
        "_dispatch",
        "_exchange",
        "_failure",
        "_limit",
        "_loop",
        "_next",
        "_plan",
        "_raced",
        "_route",
        "_watched_by",
        "place",
    )

    def __init__(
        self, dispatch: Dispatch, call: Call, route: Route, exchange: Exchange, watched_by: Watch | None
    ) -> None:
        self._dispatch = dispatch
        self._call = call
        self._route = route
        self._exchange = exchange
        self._watched_by = watched_by
        self._loop = asyncio.get_running_loop()
        self._began_at = self._loop.time()
        self._plan = Plan(route, call.model, dispatch.rng)
        now = dispatch.clock()
        self.place = self._plan.first(now)
        self._limit = self.place.upstream.retry.attempts
        self._budget = self.place.upstream.budget
        self._budget.deposit(now)
        self._next: Place | None = None
        self._raced: tuple[Lease, ...] = ()
        self._failure: errors.GatewayError | None = None

    async def attempt(self, place: Place, lease: Lease | None = None, *, beside: bool = False) -> Attempt:
        """One that has succeeded, perhaps `beside` another. `lease`: taken already. Raises GatewayError."""
        upstream, exchange = place.upstream, self._exchange
        if self._watched_by is not None and not beside:
            self._watched_by(upstream.timeouts)
        until = self._until(upstream)
        lease = lease or self._take(place)
        if lease is None:
            replica = await self._turn(place, until)
            if place is self.place:
                self.place = place._replace(replica=replica)
            lease = self._lease(place, replica)
        attempt = Attempt(upstream, lease, exchange, until, self._dispatch.clock)
        await attempt.run(self._call)
        return attempt

    def _take(self, place: Place) -> Lease | None:
        """A place on the chosen replica, if there is one free."""
        replica = place.replica
        if replica is None or place.upstream.is_full(replica):
            return None
        replica.inflight += 1
        return self._lease(place, replica)

    def _lease(self, place: Place, replica: Replica) -> Lease:
        learns = self._call.stream or self._call.kind == "embeddings"
        return Lease(place.upstream, replica, place.model, self._dispatch.clock(), learns=learns)

    async def _turn(self, place: Place, until: Until) -> Replica:
        """A replica on which there is a place now, counted. Raises Overloaded."""
        exchange = self._exchange
        exchange.enter("queue")
        if not exchange.attempts:
            exchange.upstream = place.upstream.name
        try:
            return await place.upstream.queue.turn(min(until), partial(self._will_do, place))
        except TimeoutError:
            raise until.passed() from None

    def _will_do(self, place: Place, replica: Replica) -> bool:
        return self._plan.will_do(place, replica, self._dispatch.clock())

    def _until(self, upstream: Upstream) -> Until:
        """Until when an attempt at `upstream` may take.

        A caller's patience for the first byte is all there is for a plain reply; a stream's ends with its first comment.
        """
        exchange, timeouts = self._exchange, upstream.timeouts
        patience = exchange.deadline
        if exchange.first_byte_by < patience:
            pinged = self._call.stream and self._began_at + timeouts.ping < exchange.first_byte_by
            patience = patience if pinged else exchange.first_byte_by
        return Until(self._began_at + timeouts.total, patience)

    # After a failure.

    async def again(self, failure: errors.GatewayError) -> Plain | Stream:
        """Try on until something is served. Raises the last failure, an upstream's rather than one of our own."""
        self._failure = failure
        retrying = AsyncRetrying(
            retry=retry_if_exception(_may_be_mended), wait=self._wait, stop=self._stop, sleep=self._pause, reraise=True
        )
        try:
            return await retrying(self._resume)
        except (errors.Overloaded, errors.PoolExhausted, errors.Unsupported):
            hopeless = isinstance(self._failure, errors.Unsupported)
            self._exchange.gave_up = "" if hopeless else self._exchange.gave_up or "nowhere"
            raise self._failure from None

    async def _resume(self) -> Plain | Stream:
        """tenacity's attempts: the first of them is the one that has failed already."""
        if self._next is None:
            assert self._failure is not None
            raise self._failure
        return (await self.attempt(self.place)).answer

    def _wait(self, state: RetryCallState) -> float:
        """Seconds until the next attempt: none on the way elsewhere, infinitely many if that would be too many."""
        failure = state.outcome.exception() if state.outcome is not None else None
        assert isinstance(failure, errors.GatewayError)
        if isinstance(failure, errors.UpstreamError):
            self._failure = failure
        self._plan.failed(self.place, reaction(failure).again)
        now = self._dispatch.clock()
        self._next = place = self._plan.next(self.place, now)
        if place is None or not place.again:
            return 0.0
        settings, chance = place.upstream.retry, self._dispatch.rng.random
        unsaid = isinstance(failure, errors.UpstreamThrottled) and failure.again is None
        cool_at = now if place.replica is None else place.replica.cooling.get(place.model, now)
        if unsaid or cool_at <= now:
            return FullJitter(settings, chance)(state)
        wait = keep_to(cool_at - now, settings, chance)
        if self._is_late(place, wait) and (out := self._plan.anyhow(now)) is not None:
            self._next, wait = out, 0.0
        return wait

    def _is_late(self, place: Place, wait: float) -> bool:
        return self._loop.time() + wait >= min(self._until(place.upstream))

    def _stop(self, state: RetryCallState) -> bool:
        """Whether that was the last attempt. What it grants is paid for."""
        exchange = self._exchange
        failure = state.outcome.exception() if state.outcome is not None else None
        why = exchange.gave_up = self._why_stop(state.upcoming_sleep, free=isinstance(failure, errors.Unsupported))
        if why or self._next is None or not isinstance(failure, errors.GatewayError):
            return True
        exchange.retries += ((self.place.upstream.name, end_reason(failure)),)
        self.place = self._next
        return False

    def _why_stop(self, wait: float, *, free: bool) -> str:
        """What forbids another attempt. `free`: the last one never left, and is no attempt that counts."""
        if self._exchange.attempts >= self._limit and not free:
            return "attempts"
        if self._next is None:
            return "nowhere"
        if wait == inf:
            return "retry_after"
        if self._is_late(self._next, wait):
            return "deadline"
        return "" if free or self._budget.withdraw(self._dispatch.clock()) else "budget"

    async def _pause(self, seconds: float) -> None:
        if seconds:
            self._exchange.enter("backoff")
            await self._dispatch.sleep(seconds)

    # Beside a slow attempt.

    async def hedged(self) -> Plain | Stream:
        """The reply of the attempt that is first to have one: a second one starts where the first takes too long."""
        route, exchange, clock = self._route, self._exchange, self._dispatch.clock
        assert route.hedge is not None
        recent = route.recent[self._call.stream]
        after = route.hedge.after if route.hedge.after is not None else recent.quantile(HEDGED_QUANTILE)
        spent, began_at = exchange.upstream_seconds, clock()
        first = self._take_for_race(self.place)
        attempt: Attempt | None = None
        try:
            attempt = await race(partial(self.attempt, self.place, first), self._beside, after)
        finally:
            exchange.upstream_seconds = spent + clock() - began_at
            for lease in self._raced:  # one whose attempt was cancelled before it began is still open
                if attempt is None or lease is not attempt.lease:
                    lease.settle(ABANDONED, clock())
        attempt.show()
        if self._watched_by is not None:
            self._watched_by(attempt.upstream.timeouts)
        recent.add(clock() - began_at)
        if exchange.hedge:
            exchange.hedge = "first" if attempt.lease.replica is self.place.replica else "second"
        return attempt.answer

    def _beside(self) -> Trying | None:
        """A second attempt, if there is a place for it and the budget has it."""
        now = self._dispatch.clock()
        place = self._plan.beside(self.place, now)
        if place is None or self._limit < 2 or not self._budget.withdraw(now):
            return None
        self._exchange.hedge = "neither"
        self._plan.failed(place, Again.ANYWHERE)
        return partial(self.attempt, place, self._take_for_race(place), beside=True)

    def _take_for_race(self, place: Place) -> Lease | None:
        """At once: between the choice and the first step of its task others would choose the same."""
        lease = self._take(place)
        self._raced += () if lease is None else (lease,)
        return lease


def _may_be_mended(failure: BaseException) -> bool:
    return isinstance(failure, errors.GatewayError) and reaction(failure).again is not Again.NEVER
