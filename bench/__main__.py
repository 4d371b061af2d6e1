"""The command: `python -m bench`. A run of everything prints its page and writes it to docs/benchmarks.md."""

import argparse
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from bench import contenders as known
from bench.contender import Contender, Launch
from bench.measures import GROUPS, Plan, Round, Samples, with_stage
from bench.process import Machine, free_port
from bench.report import page
from bench.stage import BenchError

PAGE = Path("docs/benchmarks.md")


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, _leave)
    plan = Plan().quick() if options.quick else Plan()
    chosen = _chosen(options.contenders, options.also)
    groups = set(options.only or GROUPS)
    began, machine = time.monotonic(), Machine()
    try:
        samples = _measure(chosen, groups, plan, verbose=options.verbose)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    text = page(chosen, samples, plan.rounds, machine.lost())
    print(text)
    print(f"{time.monotonic() - began:.0f} s")
    if not (options.quick or options.only or options.contenders or options.also):
        PAGE.write_text(text)
        print(f"written to {PAGE}")
    return 0


def _measure(chosen: Sequence[Contender], groups: set[str], plan: Plan, *, verbose: bool) -> Samples:
    samples: Samples = {}

    def tell(what: str) -> None:
        if verbose:
            print(f"  {what}", file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="bench-") as folder, with_stage(Path(folder), plan) as stage:
        for number in range(plan.rounds):
            print(f"round {number + 1} of {plan.rounds}", file=sys.stderr)
            Round(stage, plan, samples, tell).play(chosen, groups)
    return samples


def _chosen(names: Sequence[str] | None, also: Sequence[str]) -> list[Contender]:
    installed = [contender for contender in known.ALL if contender.version() is not None]
    for contender in known.ALL:
        if contender not in installed:
            print(f"bench: {contender.name} is not here, and is left out", file=sys.stderr)
    wanted = [contender for contender in installed if names is None or contender.name in names]
    missing = set(names or ()) - {contender.name for contender in wanted}
    if missing:
        sys.exit(f"bench: no such contender here: {', '.join(sorted(missing))}")
    return wanted + [_stranger(text) for text in also]


def _stranger(text: str) -> Contender:
    """A contender named on the command line, as NAME=COMMAND with {port} and {upstream} in it."""
    name, _, command = text.partition("=")

    def launch(upstream_port: int, _: Path) -> Launch:
        port = free_port()
        return Launch(shlex.split(command.format(port=port, upstream=upstream_port)), port, "/v1/models")

    return Contender(name, "as the command line says", lambda: "", launch)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three small rounds, under 90 seconds; writes no page")
    parser.add_argument("--only", type=_groups, help=f"some of {','.join(GROUPS)}")
    parser.add_argument("--contenders", type=_words, help="some of " + ",".join(c.name for c in known.ALL))
    parser.add_argument("--also", action="append", default=[], metavar="NAME=COMMAND", help="one more contender")
    parser.add_argument("--verbose", action="store_true", help="tell every figure as it comes")
    return parser.parse_args()


def _groups(text: str) -> list[str]:
    names = text.split(",")
    if not set(names) <= set(GROUPS):
        raise argparse.ArgumentTypeError(f"choose from {', '.join(GROUPS)}")
    return names


def _words(text: str) -> list[str]:
    return text.split(",")


def _leave(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
