"""The run as a page: who was measured, on what, every figure with its spread, and every goal with whether it was met."""

import datetime as dt
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.contender import Contender
from bench.measures import MEASURES, AtMost, Measure, Samples, TimesEnvoy

YARDSTICK = "envoy"
OURS = "ours"

_INTRO = """\
# Benchmarks

`make bench` measures and writes this page; [bench/README.md](../bench/README.md) says how, and what the figures do not say.
CPU is the user and system time of a contender's process. Each figure is a median over the rounds, with the lowest and the
highest in brackets. The machine is shared and its clock speed is not ours: compare columns of one run, not runs.
"""


@dataclass(frozen=True)
class Spread:
    """The median of some figures, and how far they lie apart."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> "Spread":
        """The spread of one figure a round."""
        return cls(statistics.median(figures), min(figures), max(figures))

    def __str__(self) -> str:
        return f"{_figure(self.median)} ({_figure(self.low)} to {_figure(self.high)})"


def page(contenders: Sequence[Contender], samples: Samples, rounds: int, lost: tuple[float, float]) -> str:
    """The whole page in Markdown; `lost` are the shares of the machine that others had meanwhile."""
    parts = [_INTRO, _circumstances(rounds, *lost), _who(contenders), "## Figures\n", _figures(contenders, samples)]
    if any(OURS in by_name for by_name in samples.values()):
        parts += ["## Goals\n", _goals(samples)]
    return "\n".join(parts)


def ratios(samples: Samples, measure: str, name: str) -> Spread | None:
    """How many times Envoy's figure `name` takes, round by round."""
    of_envoy = samples.get(measure, {}).get(YARDSTICK)
    figures = samples.get(measure, {}).get(name)
    if not of_envoy or not figures:
        return None
    return Spread.of([figure / envoy for figure, envoy in zip(figures, of_envoy, strict=True)])


def _circumstances(rounds: int, others: float, host: float) -> str:
    today = dt.datetime.now(dt.UTC).date().isoformat()
    cores = len(os.sched_getaffinity(0))
    return (
        f"Run of {today}, {rounds} interleaved rounds, on {cores} cores ({_cpu_model()}), "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}. "
        f"Meanwhile other processes used {others:.0%} of the cores' time, and the host kept {host:.0%}.\n"
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _who(contenders: Sequence[Contender]) -> str:
    rows = [[contender.name, contender.version() or "", contender.setting] for contender in contenders]
    return _table(["contender", "version", "set up as"], rows)


def _figures(contenders: Sequence[Contender], samples: Samples) -> str:
    rows = []
    for measure in _measured(samples):
        row = [f"{measure.title}, {measure.unit}"]
        for contender in contenders:
            figures = samples[measure.key].get(contender.name)
            row.append(_cell(measure, contender.name, samples) if figures else "")
        rows.append(row)
    return _table(["measure", *(contender.name for contender in contenders)], rows)


def _cell(measure: Measure, name: str, samples: Samples) -> str:
    spread = str(Spread.of(samples[measure.key][name]))
    ratio = ratios(samples, measure.key, name) if isinstance(measure.goal, TimesEnvoy) and name != YARDSTICK else None
    return f"{spread}, {ratio.median:.2f}x" if ratio else spread


def _goals(samples: Samples) -> str:
    judged = [measure for measure in _measured(samples) if measure.goal is not None and OURS in samples[measure.key]]
    rows = [[measure.title, *_judge(measure, samples)] for measure in judged]
    return _table(["measure", "goal", "ours", "verdict"], rows)


def _judge(measure: Measure, samples: Samples) -> list[str]:
    if isinstance(measure.goal, AtMost):
        spread = Spread.of(samples[measure.key][OURS])
        limit = measure.goal.limit
        envoy = Spread.of(samples[measure.key].get(YARDSTICK, [0.0])).median
        shared = f"; so did Envoy, with {_figure(envoy)}" if spread.median > limit and envoy > limit else ""
        return [f"at most {limit:g} {measure.unit}", str(spread), _verdict(spread.median, limit) + shared]
    assert isinstance(measure.goal, TimesEnvoy)
    ratio = ratios(samples, measure.key, OURS)
    goal = f"at most {measure.goal.factor:g}x Envoy"
    if ratio is None:
        return [goal, "", "not measured"]
    shown = f"{ratio.median:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})"
    return [goal, shown, _verdict(ratio.median, measure.goal.factor)]


def _verdict(value: float, limit: float) -> str:
    return "met" if value <= limit else f"**missed**, by {(value / limit - 1) * 100:.0f} %"


def _measured(samples: Samples) -> list[Measure]:
    return [measure for measure in MEASURES if measure.key in samples]


def _figure(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
