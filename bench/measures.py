"""What is measured, in which unit, against which goal, and the loads that measure it."""

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.contender import Contender
from bench.load import Job
from bench.stage import Running, Spent, Stage


@dataclass(frozen=True)
class TimesEnvoy:
    """A goal: at most `factor` times what Envoy takes in the same run."""

    factor: float


@dataclass(frozen=True)
class AtMost:
    """A goal: at most `limit`, in the measure's own unit."""

    limit: float


@dataclass(frozen=True)
class Measure:
    """One line of the table. `group` is what `--only` chooses by."""

    key: str
    group: str
    title: str
    unit: str
    goal: TimesEnvoy | AtMost | None = None


MEASURES = (
    Measure("plain", "plain", "plain request, 32 connections", "us CPU", TimesEnvoy(2.0)),
    Measure("steady", "plain", "plain request, at an even 2,000 a second", "us CPU", TimesEnvoy(2.0)),
    Measure("stream", "stream", "streamed chunk, 64 streams 20 ms apart", "us CPU", TimesEnvoy(1.4)),
    Measure("prompt", "prompt", "request with a 300 KB prompt, 8 connections", "us CPU", TimesEnvoy(4.0)),
    Measure("p50", "latency", "added latency at half of its own top rate, p50", "ms"),
    Measure("p99", "latency", "added latency at half of its own top rate, p99", "ms", AtMost(2.0)),
    Measure("rate", "latency", "(the rate that this was at)", "/s"),
    Measure("silent", "silent", "memory of an open silent stream, of 1,000", "KB", AtMost(20.0)),
    Measure("idle", "start", "resident memory, idle after the start", "MB", AtMost(80.0)),
    Measure("start", "start", "from exec to the first answer", "ms", AtMost(1000.0)),
    Measure("start_cpu", "start", "(CPU time of that)", "ms"),
)
GROUPS = tuple(dict.fromkeys(measure.group for measure in MEASURES))


@dataclass(frozen=True)
class Plan:
    """How much of each load. Every one is bounded in count and in time.

    A round's load comes in slices, and contenders take turns slice by slice: on a shared machine the speed of a core
    changes from second to second, and what is to be compared must meet the same core.
    """

    rounds: int = 5
    plain: tuple[int, int] = (10, 1000)  # slices, requests in each
    prompts: tuple[int, int] = (8, 60)
    streams: tuple[int, int] = (2, 64)
    chunks: int = 100
    interval: float = 0.02
    steady: tuple[int, float] = (3, 0.6)  # slices, seconds of each
    latency: tuple[int, float] = (3, 0.8)  # likewise
    steady_rate: float = 2000.0
    top_rate: float = 3000.0  # above, it is the load generator's own core that lets requests wait
    silent: int = 1000
    seconds: float = 4.0  # no slice goes on longer, whatever its count

    def quick(self) -> "Plan":
        """A third of the load, for a look; its figures are rough."""
        return Plan(
            rounds=3, plain=(5, 600), prompts=(4, 40), streams=(1, 64), chunks=60, steady=(2, 0.4), latency=(2, 0.5)
        )


Samples = dict[str, dict[str, list[float]]]  # measure -> contender -> one figure a round


class Round:
    """One round: every load on every contender in turn, each contender in a fresh process."""

    def __init__(self, stage: Stage, plan: Plan, samples: Samples, tell: Callable[[str], None]) -> None:
        self._stage = stage
        self._plan = plan
        self._samples = samples
        self._tell = tell
        self._running: list[Running] = []
        self._top_rate: dict[str, float] = {}

    def play(self, contenders: Sequence[Contender], groups: set[str]) -> None:
        """Measure what `groups` names."""
        if groups & {"start", "silent"}:
            for contender in contenders:
                self._footprint(contender, silent="silent" in groups)
        wanted = self._loads(groups)
        if not wanted:
            return
        with contextlib.ExitStack() as stack:
            self._running = [stack.enter_context(self._stage.contender(contender)) for contender in contenders]
            for load in wanted:
                load()

    def _loads(self, groups: set[str]) -> list[Callable[[], None]]:
        by_group = {
            "plain": [self._plain, self._steady],
            "prompt": [self._prompt],
            "stream": [self._stream],
            "latency": [self._latency] if "plain" in groups else [self._plain, self._latency],  # needs the top rate
        }
        return [load for group, loads in by_group.items() if group in groups for load in loads]

    def _footprint(self, contender: Contender, *, silent: bool) -> None:
        with self._stage.contender(contender) as running:
            self._note("start", running, running.start_seconds * 1e3)
            self._note("start_cpu", running, running.start_cpu_seconds * 1e3)
            time.sleep(0.5)
            self._note("idle", running, running.child.resident_kb() / 1024)
            if silent:
                count = self._plan.silent // (10 if running.slow else 1)
                with self._stage.load(Job("silent", running.port, 8, count, warmup=400), running) as once:
                    self._note("silent", running, once().grown_kb / count)

    def _plain(self) -> None:
        slices, count = self._plan.plain
        seconds = self._plan.seconds

        def job(running: Running) -> Job:
            return Job("plain", running.port, 32, count, seconds=seconds, warmup=count)

        for running, spent in self._in_turn(job, slices):
            rates = [one.result["answers"] / one.result["seconds"] for one in spent]
            self._top_rate[running.name] = statistics.median(rates)
            self._note("plain", running, *(one.cpu_seconds / one.result["answers"] * 1e6 for one in spent))

    def _steady(self) -> None:
        """What a request costs where the contender has time to wait for the next one, as it mostly has in life."""
        slices, seconds = self._plan.steady
        rate = self._plan.steady_rate

        def job(running: Running) -> Job:
            of_it = rate / (200 if running.slow else 1)
            return Job("rate", running.port, 64, max(20, round(of_it * seconds)), rate=of_it, warmup=64)

        for running, spent in self._in_turn(job, slices):
            self._note("steady", running, *(one.cpu_seconds / one.result["answers"] * 1e6 for one in spent))

    def _prompt(self) -> None:
        slices, count = self._plan.prompts
        seconds = self._plan.seconds

        def job(running: Running) -> Job:
            return Job("plain", running.port, 8, count, seconds=seconds, prompt_bytes=300_000, warmup=32)

        for running, spent in self._in_turn(job, slices):
            self._note("prompt", running, *(one.cpu_seconds / one.result["answers"] * 1e6 for one in spent))

    def _stream(self) -> None:
        slices, streams = self._plan.streams
        chunks, interval = self._plan.chunks, self._plan.interval

        def job(running: Running) -> Job:
            at_once = streams // (8 if running.slow else 1)
            return Job("streams", running.port, at_once, chunks=chunks, interval=interval, warmup=at_once * 4)

        for running, spent in self._in_turn(job, slices):
            self._note("stream", running, *(one.cpu_seconds / one.result["chunks"] * 1e6 for one in spent))

    def _latency(self) -> None:
        slices, seconds = self._plan.latency
        upstream = self._stage.upstream_port

        def job(running: Running) -> Job:
            rate = self._latency_rate(running)
            count = max(20, round(rate * seconds))
            return Job("rate", running.port, 64, count, rate=rate, direct_port=upstream, warmup=64)

        for running, spent in self._in_turn(job, slices):
            self._note("rate", running, self._latency_rate(running))
            for percentile in ("p50", "p99"):
                self._note(percentile, running, *(one.result[percentile] * 1e3 for one in spent))

    def _latency_rate(self, running: Running) -> float:
        return min(self._top_rate[running.name] / 2, self._plan.top_rate)

    def _in_turn(self, job: Callable[[Running], Job], slices: int) -> list[tuple[Running, list[Spent]]]:
        """The slices of a load, dealt out to the contenders in turn."""
        with contextlib.ExitStack() as stack:
            loads = [stack.enter_context(self._stage.load(job(running), running)) for running in self._running]
            dealt = [[once() for once in loads] for _ in range(slices)]
        return [(running, [one[number] for one in dealt]) for number, running in enumerate(self._running)]

    def _note(self, measure: str, running: Running, *figures: float) -> None:
        """The figure of this round: the median of its slices."""
        figure = statistics.median(figures)
        self._samples.setdefault(measure, {}).setdefault(running.name, []).append(figure)
        self._tell(f"{running.name} {measure} {figure:.4g}")


def with_stage(folder: Path, plan: Plan) -> contextlib.closing[Stage]:
    """The stage for a plan; it closes with the block."""
    return contextlib.closing(Stage(folder, plan.chunks, plan.interval))
