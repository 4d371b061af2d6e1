"""Where our gateway spends its time: `python -m bench.profile [plain|streams]` runs it under cProfile and a load.

cProfile makes calls dearer than they are, so this shows where to look, and never how much was won: that is for the bench.
"""

import dataclasses
import pstats
import sys
import tempfile
from pathlib import Path

from bench.contender import Launch
from bench.contenders import ours
from bench.load import Job
from bench.measures import Plan, with_stage

_LINES = 45


def main() -> None:
    kind = sys.argv[1] if len(sys.argv) > 1 else "plain"
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        profile = Path(folder) / "profile"
        _record(kind, Path(folder), profile)
        pstats.Stats(str(profile)).strip_dirs().sort_stats("tottime").print_stats(_LINES)


def _record(kind: str, folder: Path, profile: Path) -> None:
    def launch(upstream_port: int, where: Path) -> Launch:
        plain = ours.launch(upstream_port, where)
        return dataclasses.replace(
            plain, command=[sys.executable, "-m", "cProfile", "-o", str(profile), *plain.command]
        )

    plan = Plan()
    profiled = dataclasses.replace(ours.CONTENDER, launch=launch)
    with with_stage(folder, plan) as stage, stage.contender(profiled) as running:
        connections = 64 if kind == "streams" else 32
        job = Job(kind, running.port, connections, 10_000, chunks=plan.chunks, interval=plan.interval)
        with stage.load(job, running) as once:
            print(once().result)


if __name__ == "__main__":
    main()
