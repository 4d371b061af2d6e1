"""What is measured, in which unit, against which goal, and the loads that measure it."""

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.contender import Contender
from bench.load import Job
from bench.stage import Running, Stage


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
    Measure("stream", "stream", "streamed chunk, 64 streams 20 ms apart", "us CPU", TimesEnvoy(1.4)),
    Measure("prompt", "prompt", "request with a 300 KB prompt, 8 connections", "us CPU", TimesEnvoy(4.0)),
    Measure("p50", "latency", "added latency at half of its own top rate, p50", "ms"),
    Measure("p99", "latency", "added latency at half of its own top rate, p99", "ms", AtMost(2.0)),
    Measure("rate", "latency", "(the rate that this was at)", "/s"),
    Measure("silent", "silent", "memory of an open silent stream, of 1,000", "KB", AtMost(20.0)),
    Measure("idle", "start", "resident memory, idle after the start", "MB", AtMost(80.0)),
    Measure("start", "start", "from exec to the first answer", "ms", AtMost(1000.0)),
)
GROUPS = tuple(dict.fromkeys(measure.group for measure in MEASURES))


@dataclass(frozen=True)
class Plan:
    """How much of each load. Every one is bounded in count and in time."""

    rounds: int = 5
    plain: int = 8000
    prompts: int = 600
    streams: int = 64
    chunks: int = 150
    interval: float = 0.02
    latency_seconds: float = 2.5
    silent: int = 1000
    seconds: float = 4.0  # no load goes on longer, whatever its count

    def quick(self) -> "Plan":
        """A third of the load, for a look; its figures are rough."""
        return Plan(rounds=3, plain=3000, prompts=200, chunks=60, latency_seconds=1.0, seconds=2.0)


Samples = dict[str, dict[str, list[float]]]  # measure -> contender -> one figure a round


class Round:
    """One round: every load on every contender in turn, each contender in a fresh process."""

    def __init__(self, stage: Stage, plan: Plan, samples: Samples, tell: Callable[[str], None]) -> None:
        self._stage = stage
        self._plan = plan
        self._samples = samples
        self._tell = tell
        self._slow: set[str] = set()
        self._top_rate: dict[str, float] = {}

    def play(self, contenders: Iterable[Contender], groups: set[str]) -> None:
        """Measure what `groups` names."""
        contenders = tuple(contenders)
        self._slow = {contender.name for contender in contenders if contender.slow}
        if groups & {"start", "silent"}:
            for contender in contenders:
                self._footprint(contender, silent="silent" in groups)
        loads = {"plain": self._plain, "prompt": self._prompt, "stream": self._stream, "latency": self._latency}
        wanted = [name for name in loads if name in groups or (name == "plain" and "latency" in groups)]
        if not wanted:
            return
        with contextlib.ExitStack() as stack:
            running = [stack.enter_context(self._stage.contender(contender)) for contender in contenders]
            for name in wanted:
                for contender_ in running:
                    loads[name](contender_)

    def _note(self, measure: str, name: str, value: float) -> None:
        self._samples.setdefault(measure, {}).setdefault(name, []).append(value)
        self._tell(f"{name} {measure} {value:.4g}")

    def _footprint(self, contender: Contender, *, silent: bool) -> None:
        with self._stage.contender(contender) as running:
            time.sleep(0.5)
            self._note("start", running.name, running.start_seconds * 1e3)
            self._note("idle", running.name, running.child.resident_kb() / 1024)
            if silent:
                count = self._plan.silent // (10 if contender.slow else 1)
                spent = self._stage.load(Job("silent", running.port, 8, count, warmup=400), running)
                self._note("silent", running.name, spent.grown_kb / count)

    def _plain(self, running: Running) -> None:
        plan = self._plan
        job = Job("plain", running.port, 32, plan.plain, seconds=plan.seconds, warmup=plan.plain // 8)
        spent = self._stage.load(job, running)
        self._top_rate[running.name] = spent.result["answers"] / spent.result["seconds"]
        self._note("plain", running.name, spent.cpu_seconds / spent.result["answers"] * 1e6)

    def _prompt(self, running: Running) -> None:
        plan = self._plan
        job = Job("plain", running.port, 8, plan.prompts, seconds=plan.seconds, prompt_bytes=300_000, warmup=32)
        spent = self._stage.load(job, running)
        self._note("prompt", running.name, spent.cpu_seconds / spent.result["answers"] * 1e6)

    def _stream(self, running: Running) -> None:
        plan = self._plan
        streams = plan.streams // (8 if running.name in self._slow else 1)
        job = Job(
            "streams", running.port, streams, streams, chunks=plan.chunks, interval=plan.interval, warmup=streams * 4
        )
        spent = self._stage.load(job, running)
        self._note("stream", running.name, spent.cpu_seconds / spent.result["chunks"] * 1e6)

    def _latency(self, running: Running) -> None:
        rate = self._top_rate[running.name] / 2
        count = max(20, round(rate * self._plan.latency_seconds))
        through = self._stage.load(Job("rate", running.port, 64, count, rate=rate, warmup=64), running).result
        direct = self._stage.load(Job("rate", self._stage.upstream_port, 64, count, rate=rate, warmup=64), None).result
        self._note("rate", running.name, rate)
        for percentile in ("p50", "p99"):
            self._note(percentile, running.name, (through[percentile] - direct[percentile]) * 1e3)


def with_stage(folder: Path, plan: Plan) -> contextlib.closing[Stage]:
    """The stage for a plan; it closes with the block."""
    return contextlib.closing(Stage(folder, plan.chunks, plan.interval))
