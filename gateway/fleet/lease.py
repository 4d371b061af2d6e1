"""What one attempt borrows from a replica, and what is learnt when it is given back.

The one place where an outcome becomes a verdict on a replica or on a key. Must not know transports or callers.
"""

import structlog

from gateway.errors import GatewayError, UpstreamQuota, UpstreamThrottled, UpstreamUnauthorized
from gateway.fleet.replica import Replica
from gateway.fleet.upstream import Upstream
from gateway.outcome import LONGEST_COOLING, Outcome, Verdict, judge, reaction
from gateway.policy.balance import PeakEwma

_UNSAID_COOLING = 1.0  # seconds, where an upstream is overloaded and does not say until when

_log = structlog.get_logger("gateway.fleet")


class Lease:
    """One attempt's place at a replica, counted there already. Settling it twice is settling it once.

    `learns`: the time to its first byte tells how quick the replica is; that of a plain chat tells how long the answer is.
    """

    __slots__ = ("_epoch", "_key_epoch", "_learns", "_open", "_spoke", "_upstream", "began_at", "model", "replica")

    def __init__(self, upstream: Upstream, replica: Replica, model: str, now: float, *, learns: bool) -> None:
        self.replica = replica
        self.model = model
        self._upstream = upstream
        self._learns = learns
        self.began_at = now
        self._open = True
        self._spoke = False
        breaker, key = replica.breaker, upstream.key
        self._epoch = breaker.epoch if breaker.closed else breaker.begin(now)
        self._key_epoch = key.epoch if key.closed else key.begin(now)

    def answered(self, now: float) -> None:
        """The first event, or the whole plain reply, is here."""
        self._spoke = True
        replica, upstream = self.replica, self._upstream
        if not replica.breaker.closed and replica.breaker.answered(self._epoch, now):
            replica.latency = PeakEwma()  # how slow it was when it was ill says nothing now
            _log.info("replica_returned", upstream=upstream.name, replica=replica.name)
        if self._learns:
            replica.latency.observe(now - self.began_at, now)
        if not upstream.key.closed and upstream.key.answered(self._key_epoch, now):
            _log.info("key_accepted", upstream=upstream.name)

    def settle(self, error: GatewayError | None, now: float) -> bool:
        """Give the place back, and tell what came of the attempt. False if that was done before."""
        if not self._open:
            return False
        self._open = False
        if error is None:
            self.replica.breaker.served(self._epoch, now)
        else:
            self._judge(error, now)
        self._upstream.release(self.replica)  # last: who waits for the place should know what came of it
        return True

    def _judge(self, error: GatewayError, now: float) -> None:
        replica, upstream, told = self.replica, self._upstream, reaction(error)
        if told.replica is Verdict.FAILED:
            if replica.breaker.failed(self._epoch, now):
                _log.warning("replica_ejected", upstream=upstream.name, replica=replica.name, reason=error.code)
        else:
            replica.breaker.abandoned(self._epoch)
        if told.key is not Verdict.FAILED:
            upstream.key.abandoned(self._key_epoch)
        elif upstream.key.failed(self._key_epoch, now):
            upstream.dry = isinstance(error, UpstreamQuota)
            known = upstream.hint and isinstance(error, UpstreamUnauthorized)
            said = {"hint": upstream.hint} if known else {}
            _log.error("key_refused", upstream=upstream.name, reason=error.code, **said)
        if told.cools:
            again = error.again if isinstance(error, UpstreamThrottled) else None
            seconds = _UNSAID_COOLING if again is None else min(again, LONGEST_COOLING)
            replica.cool(self.model, now + seconds, now)
        self._wait_counts(judge(error), now)

    def _wait_counts(self, outcome: Outcome, now: float) -> None:
        """Who was waited for in vain has been at least that slow."""
        if self._learns and not self._spoke and outcome in (Outcome.TIMED_OUT, Outcome.ABANDONED):
            waited = now - self.began_at
            if waited > self.replica.latency.read(now):
                self.replica.latency.observe(waited, now)
