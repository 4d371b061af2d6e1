"""One fault of one replica of several: when it came and went, and what the run says of it once the load has ended."""

import asyncio
import contextlib
import itertools
import math
import time
from dataclasses import dataclass

from gateway.policy.balance import PeakEwma
from tests.failover.load import Answer, steady_percentile
from tests.failover.replica import FIRST, RETRY_AFTER, SLOWNESS, Replica
from tests.failover.stage import EJECTION, FIRST_BYTE, JITTER, LONGEST_EJECTION, RATE, Stage

WARM_UP, BEFORE, FAULT, AFTER = 1.0, 3.0, 5.0, 1.0  # seconds
PATIENCE = 60.0  # seconds for it to come back; the tests demand less


@dataclass(frozen=True, repr=False)
class Trial:
    """Times are monotonic seconds. `back_at`: when the first request after the fault came that it served; or never, inf."""

    stage: Stage
    bad: Replica
    fault: str
    warm_at: float
    broke_at: float
    mended_at: float
    back_at: float

    @classmethod
    async def run(cls, stage: Stage, fault: str) -> "Trial":
        """Let the first replica fail for a time, and wait until it is back."""
        bad = stage.replicas[0]
        await stage.load.go_on(WARM_UP)
        warm_at = time.monotonic()
        await stage.load.go_on(BEFORE)
        broke_at = time.monotonic()
        await bad.fail(fault)
        await stage.load.go_on(FAULT)
        mended_at = time.monotonic()
        await bad.recover()
        back_at = math.inf
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await bad.wait_until(lambda: bool(bad.served) and bad.served[-1] > mended_at)
            back_at = min(at for at in bad.served if at > mended_at)
        await stage.load.go_on(AFTER)
        return cls(stage, bad, fault, warm_at, broke_at, mended_at, back_at)

    @property
    def answers(self) -> list[Answer]:
        """All."""
        return self.stage.load.answers

    @property
    def lost(self) -> list[Answer]:
        """Those with a failure that another replica could have avoided: all but streams cut in the middle by the fault."""
        return [answer for answer in self.answers if not (answer.is_whole or self._was_cut(answer))]

    def _was_cut(self, answer: Answer) -> bool:
        return self.fault == "killed" and answer.sent < self.broke_at < answer.ended and answer.was_cut

    @property
    def attempts(self) -> int:
        """Of the gateway, by its own count, which knows also those that reached nobody."""
        return round(sum(self.stage.watch.looks[-1].attempts.values()))

    @property
    def out_at(self) -> float:
        """From when on it got no more calls than it should; inf: it went on getting more.

        Those are probes, at most one in each ejection; but for one that is merely slow, a tenth of all calls.
        """
        looks = self.stage.watch.looks
        if self.fault == "killed":  # it counts nothing then
            states = ((look.at, look.states[self.bad.netloc]) for look in looks if look.at >= self.broke_at)
            return next((at for at, state in states if state != "available"), math.inf)
        seen = [at for at in self.bad.seen if self.broke_at < at < self.mended_at]
        for number, (at, following) in enumerate(itertools.pairwise([self.broke_at, *seen, self.mended_at])):
            left, seconds = len(seen) - number, self.mended_at - at
            if self.fault == "slow" and seconds >= 1 and left <= seconds * RATE / 10:
                return at
            if self.fault != "slow" and following - at > EJECTION / 2 and left <= 1 + seconds / EJECTION:
                return at
        return math.inf

    @property
    def tried(self) -> tuple[int, int]:
        """Attempts there while the fault lasted: before it was out, and then."""
        if self.fault == "killed":
            looks = (self.stage.watch.last(min(at, self.mended_at)) for at in (self.out_at, self.mended_at))
            before, all_ = (round(look.failures(self.bad.netloc)) for look in looks)
        else:
            before, all_ = (
                sum(self.broke_at < at <= until for at in self.bad.seen) for until in (self.out_at, self.mended_at)
            )
        return before, all_ - before

    @property
    def states(self) -> set[str]:
        """What the gateway said of it while the fault lasted."""
        looks = self.stage.watch.looks
        return {look.states[self.bad.netloc] for look in looks if self.broke_at <= look.at < self.mended_at}

    @property
    def back_within(self) -> float:
        """Seconds in which it had to be asked again: its ejection, if there was one, after a probe that the fault still met."""
        if ejections := self.stage.ejections(self.bad):
            lost = FIRST_BYTE if self.fault == "stalled" else 0.0
            return min(ejections * EJECTION * (1 + JITTER), LONGEST_EJECTION) + lost
        if self.fault == "throttled":
            return RETRY_AFTER
        # Left out by balance alone, it is asked again when what is remembered of it has faded.
        return PeakEwma().decay * math.log(FIRST_BYTE / FIRST if self.fault == "stalled" else SLOWNESS)

    @property
    def p50(self) -> tuple[float, float]:
        """Of lateness in seconds: before the fault, and while it lasted and the replica was out."""
        return self._moved(50)

    @property
    def p99(self) -> tuple[float, float]:
        """Likewise."""
        return self._moved(99)

    @property
    def noise(self) -> float:
        """Seconds that the machine added at p99 while the fault lasted: to plain calls that went past the gateway."""
        straight = [answer for answer in self.stage.straight.answers if not answer.stream]
        meanwhile = [answer for answer in straight if self.broke_at <= answer.due < self.mended_at]
        return steady_percentile(meanwhile, 99) - steady_percentile(meanwhile, 50)

    def _moved(self, percent: int) -> tuple[float, float]:
        # What a slow replica serves is late by its own slowness.
        answers = [answer for answer in self.answers if not answer.is_from(self.bad.name) or answer.due < self.broke_at]
        before = [answer for answer in answers if self.warm_at <= answer.due < self.broke_at]
        meanwhile = [answer for answer in answers if self.out_at <= answer.due < self.mended_at]
        return steady_percentile(before, percent), steady_percentile(meanwhile, percent)

    def __repr__(self) -> str:
        calls, cut = len(self.answers), sum(map(self._was_cut, self.answers))
        before, then = self.tried
        return (
            f"{calls} calls, {len(self.lost)} lost, {cut} cut, {self.attempts} attempts ({self.attempts / calls:.3f}); "
            f"p50 {_ms(self.p50)}, p99 {_ms(self.p99)} ms (noise {1000 * self.noise:.1f}); "
            f"out after {self.out_at - self.broke_at:.2f} s and {before} calls, {then} then, "
            f"back after {self.back_at - self.mended_at:.2f} s (of {self.back_within:.1f})"
        )


def _ms(moved: tuple[float, float]) -> str:
    before, meanwhile = moved
    return f"{1000 * before:.1f} -> {1000 * meanwhile:.1f}"
