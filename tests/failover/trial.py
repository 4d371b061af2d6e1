"""One fault of one replica of several: when it came and went, and what the run says of it once the load has ended."""

import asyncio
import contextlib
import math
import time
from dataclasses import dataclass

from gateway.policy.balance import PeakEwma
from tests.failover.load import Answer, percentile, steady_percentile
from tests.failover.replica import FIRST, RETRY_AFTER, SLOWNESS, Replica
from tests.failover.stage import EJECTION, FIRST_BYTE, JITTER, LONGEST_EJECTION, Stage

WARM_UP, BEFORE, FAULT, AFTER = 1.0, 3.0, 5.0, 1.0  # seconds
PATIENCE = 60.0  # seconds for it to come back; the tests demand less


@dataclass(frozen=True)
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
            back_at = bad.served[-1]
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
        """From when on it got no more calls than probes, of which there is one in each ejection; inf: it got more."""
        if self.fault == "killed":
            looks = (look for look in self.stage.watch.looks if look.at >= self.broke_at)
            return next((look.at for look in looks if look.states[self.bad.netloc] != "available"), math.inf)
        seen = [at for at in self.bad.seen if self.broke_at < at < self.mended_at]
        moments = enumerate([self.broke_at, *seen])
        return next((at for number, at in moments if len(seen) - number <= self._probes(at)), math.inf)

    def _probes(self, since: float) -> float:
        return 1 + (self.mended_at - since) / EJECTION

    @property
    def tried(self) -> int:
        """Attempts there before it was out."""
        if self.fault == "killed":
            return round(self.stage.watch.last(self.out_at).failures(self.bad.netloc))
        return sum(self.broke_at < at <= self.out_at for at in self.bad.seen)

    @property
    def states(self) -> set[str]:
        """What the gateway said of it while the fault lasted."""
        looks = self.stage.watch.looks
        return {look.states[self.bad.netloc] for look in looks if self.broke_at <= look.at < self.mended_at}

    @property
    def back_within(self) -> float:
        """Seconds in which it had to be asked again: its ejection, if there was one."""
        if ejections := self.stage.ejections(self.bad):
            return min(ejections * EJECTION * (1 + JITTER), LONGEST_EJECTION)
        if self.fault == "throttled":
            return RETRY_AFTER
        # Left out by balance alone, it is asked again when what is remembered of it has faded.
        return PeakEwma().decay * math.log(FIRST_BYTE / FIRST if self.fault == "stalled" else SLOWNESS)

    @property
    def before(self) -> list[Answer]:
        """Calls before the fault."""
        return self.stage.answers(self.warm_at, self.broke_at)

    @property
    def meanwhile(self) -> list[Answer]:
        """Calls while the fault lasted and the replica was out; not what a slow one served, which is its own slowness."""
        answers = self.stage.answers(self.out_at, self.mended_at)
        return [answer for answer in answers if not answer.is_from(self.bad.name)]

    def __str__(self) -> str:
        calls, cut = len(self.answers), sum(map(self._was_cut, self.answers))
        p50, p99 = (
            f"{1000 * steady_percentile(self.before, percent):.1f} -> {1000 * steady_percentile(self.meanwhile, percent):.1f}"
            for percent in (50, 99)
        )
        worst = " -> ".join(
            f"{1000 * percentile((answer.lateness for answer in answers), 99):.1f}"
            for answers in (self.before, self.meanwhile)
        )
        return (
            f"{calls} calls, {len(self.lost)} lost, {cut} cut; {self.attempts} attempts ({self.attempts / calls:.3f}); "
            f"p50 {p50} ms, p99 {p99} ms (of all seconds {worst}); "
            f"out after {self.out_at - self.broke_at:.2f} s and {self.tried} failures, "
            f"back after {self.back_at - self.mended_at:.2f} s (of {self.back_within:.1f})"
        )
