"""Takes a Call to an upstream and comes back with a reply, or with the one error that says why there is none.

The first attempt costs nothing of the machinery for the others: only when it has failed does tenacity's loop begin, with
that attempt as its first. What may still be tried is the plan's to say; this file keeps to the limits: attempts, time,
and the budget of the upstream at which the call began. Must not know callers or ASGI.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import partial
from math import inf

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from gateway import errors
from gateway.call import Call, Clock, Exchange
from gateway.fleet import Hedge, Lease, Replica, Route, Timeouts, Upstream
from gateway.flow.attempt import ABANDONED, Attempt, Plain, Stream, Until
from gateway.flow.hedge import Trying, race
from gateway.flow.plan import Place, Plan, begin
from gateway.flow.waits import waiting
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
        now = self.clock()
        exchange.sought_at = _now()
        place = begin(route, call.model, self.rng, now)
        upstream, replica = place.upstream, place.replica
        upstream.budget.deposit(now)
        if replica is None or route.hedge is not None or upstream.is_full(replica):
            return await Tries(self, call, route, exchange, place, watched_by).begin()
        if watched_by is not None:
            watched_by(upstream.timeouts)
        replica.inflight += 1
        attempt = self.attempt(place, self.lease(place, replica, call), call, exchange)
        try:
            return await attempt.run(call)
        except errors.GatewayError as failure:
            return await Tries(self, call, route, exchange, place, watched_by).again(failure)

    def lease(self, place: Place, replica: Replica, call: Call) -> Lease:
        """The place on `replica` that has been counted there."""
        learns = call.stream or call.kind == "embeddings"
        return Lease(place.upstream, replica, place.model, self.clock(), learns=learns)

    def attempt(self, place: Place, lease: Lease, call: Call, exchange: Exchange) -> Attempt:
        """One that is ready to run."""
        upstream = place.upstream
        return Attempt(upstream, lease, exchange, Until.of(upstream.timeouts, call, exchange), self.clock)


class Tries:
    """The attempts of one call: where it is, where it goes next, and what it may still spend.

    The first of them needs nothing of this, unless it has to wait, fails, or is one of two.
    """

    __slots__ = (
        "_call",
        "_dispatch",
        "_exchange",
        "_failure",
        "_next",
        "_payer",
        "_plan",
        "_raced",
        "_route",
        "_watched_by",
        "place",
    )

    def __init__(
        self, dispatch: Dispatch, call: Call, route: Route, exchange: Exchange, place: Place, watched_by: Watch | None
    ) -> None:
        self._dispatch = dispatch
        self._call = call
        self._route = route
        self._exchange = exchange
        self._watched_by = watched_by
        self._plan = Plan(route, call.model, dispatch.rng)
        self._payer = place.upstream
        self.place = place
        self._next: Place | None = None
        self._raced: tuple[Lease, ...] = ()
        self._failure: errors.GatewayError | None = None

    async def begin(self) -> Plain | Stream:
        """Try, and then on."""
        try:
            if self._route.hedge is not None:
                return await self._hedged(self._route.hedge)
            return (await self._attempt(self.place)).answer
        except errors.GatewayError as failure:
            return await self.again(failure)

    async def _attempt(self, place: Place, lease: Lease | None = None, *, beside: bool = False) -> Attempt:
        """One that has succeeded, perhaps `beside` another. `lease`: taken already. Raises GatewayError."""
        upstream, dispatch = place.upstream, self._dispatch
        if self._watched_by is not None and not beside:
            self._watched_by(upstream.timeouts)
        lease = lease or self._take(place)
        if lease is None:
            replica = await self._turn(place)
            if place is self.place:
                self.place = place._replace(replica=replica)
            lease = dispatch.lease(place, replica, self._call)
        attempt = dispatch.attempt(place, lease, self._call, self._exchange)
        await attempt.run(self._call)
        return attempt

    def _take(self, place: Place) -> Lease | None:
        """A place on the chosen replica, if there is one free."""
        replica = place.replica
        if replica is None or place.upstream.is_full(replica):
            return None
        replica.inflight += 1
        return self._dispatch.lease(place, replica, self._call)

    async def _turn(self, place: Place) -> Replica:
        """A replica on which there is a place now, counted. Raises Overloaded."""
        exchange = self._exchange
        exchange.enter("queue")
        if not exchange.attempts:
            exchange.upstream = place.upstream.name
        until, queue = self._until(place.upstream), place.upstream.queue
        watched = waiting("queue", place.upstream.name, exchange, self._dispatch.clock)
        try:
            with watched if queue.has_room else nullcontext():
                return await queue.turn(min(until), partial(self._will_do, place))
        except TimeoutError:
            raise until.passed() from None

    def _will_do(self, place: Place, replica: Replica) -> bool:
        return self._plan.will_do(place, replica, self._dispatch.clock())

    def _until(self, upstream: Upstream) -> Until:
        return Until.of(upstream.timeouts, self._call, self._exchange)

    # After a failure.

    async def again(self, failure: errors.GatewayError) -> Plain | Stream:
        """Try on until something is served. Raises the last failure, an upstream's rather than one of our own."""
        self._failure = failure
        retrying = AsyncRetrying(
            retry=retry_if_exception(_may_be_mended), wait=self._wait, stop=self._stop, sleep=self._pause, reraise=True
        )
        try:
            return await retrying(self._resume)
        except (errors.Overloaded, errors.PoolExhausted):
            self._exchange.gave_up = self._exchange.gave_up or "nowhere"
            raise self._failure from None

    async def _resume(self) -> Plain | Stream:
        """tenacity's attempts: the first of them is the one that has failed already."""
        if self._next is None:
            assert self._failure is not None
            raise self._failure
        return (await self._attempt(self.place)).answer

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
        return _now() + wait >= min(self._until(place.upstream))

    def _stop(self, state: RetryCallState) -> bool:
        """Whether that was the last attempt. What it grants is paid for."""
        exchange = self._exchange
        failure = state.outcome.exception() if state.outcome is not None else None
        why = exchange.gave_up = self._why_stop(state.upcoming_sleep)
        if why or self._next is None or not isinstance(failure, errors.GatewayError):
            return True
        exchange.retries += ((self.place.upstream.name, end_reason(failure)),)
        self.place = self._next
        return False

    def _why_stop(self, wait: float) -> str:
        if self._exchange.attempts >= self._payer.retry.attempts:
            return "attempts"
        if self._next is None:
            return "nowhere"
        if wait == inf:
            return "retry_after"
        if self._is_late(self._next, wait):
            return "deadline"
        return "" if self._payer.budget.withdraw(self._dispatch.clock()) else "budget"

    async def _pause(self, seconds: float) -> None:
        if seconds:
            self._exchange.enter("backoff")
            await self._dispatch.sleep(seconds)

    # Beside a slow attempt.

    async def _hedged(self, hedge: Hedge) -> Plain | Stream:
        """The reply of the attempt that is first to have one: a second one starts where the first takes too long."""
        route, exchange, clock = self._route, self._exchange, self._dispatch.clock
        recent = route.recent[self._call.stream]
        after = hedge.after if hedge.after is not None else recent.quantile(HEDGED_QUANTILE)
        spent, began_at = exchange.upstream_seconds, clock()
        first = self._take_for_race(self.place)
        attempt: Attempt | None = None
        try:
            attempt = await race(partial(self._attempt, self.place, first), self._beside, after)
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
        if place is None or self._payer.retry.attempts < 2 or not self._payer.budget.withdraw(now):
            return None
        self._exchange.hedge = "neither"
        self._plan.failed(place, Again.ANYWHERE)
        return partial(self._attempt, place, self._take_for_race(place), beside=True)

    def _take_for_race(self, place: Place) -> Lease | None:
        """At once: between the choice and the first step of its task others would choose the same."""
        lease = self._take(place)
        self._raced += () if lease is None else (lease,)
        return lease


def _may_be_mended(failure: BaseException) -> bool:
    return isinstance(failure, errors.GatewayError) and reaction(failure).again is not Again.NEVER


def _now() -> float:
    return asyncio.get_running_loop().time()
