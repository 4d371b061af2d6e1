"""The stage of a run: the upstream, the contenders, the load, and that all of them are gone when the run is."""

import contextlib
import http.client
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.contender import Contender
from bench.load import Job
from bench.process import Child, split_cores, start, start_talking

_START_LIMIT = 60.0


class BenchError(Exception):
    """A contender does not start, or a load has failed: there are no figures then."""


@dataclass(frozen=True)
class Running:
    """A contender that answers."""

    name: str
    child: Child
    port: int
    start_seconds: float
    start_cpu_seconds: float
    slow: bool


@dataclass(frozen=True)
class Spent:
    """What a load said of itself, and the CPU time that the contender spent on it."""

    cpu_seconds: float
    grown_kb: int
    result: dict[str, float]


class Stage:
    """Starts what a run needs, in one folder for configurations and logs."""

    def __init__(self, folder: Path, chunks: int, interval: float) -> None:
        self._folder = folder
        self._measured, self._measuring = split_cores()
        self._upstream = self._talk("upstream", "bench.upstream", str(chunks), str(interval))
        self.upstream_port = int(_read_line(self._upstream) or self._give_up("upstream"))

    def close(self) -> None:
        """End the upstream. Contenders and loads end with their blocks."""
        self._upstream.end()

    @contextlib.contextmanager
    def contender(self, contender: Contender) -> Iterator[Running]:
        """Start a contender, wait until it answers, and end it with the block."""
        launch = contender.launch(self.upstream_port, self._folder)
        began = time.monotonic()
        child = start(launch.command, launch.environment, self._log(contender.name), self._measured)
        try:
            while not _answers(launch.port, launch.ready_path):
                if child.popen.poll() is not None or time.monotonic() - began > _START_LIMIT:
                    self._give_up(contender.name)
                time.sleep(0.002)
            took = time.monotonic() - began
            yield Running(contender.name, child, launch.port, took, child.cpu_seconds(), contender.slow)
        finally:
            child.end()

    @contextlib.contextmanager
    def load(self, job: Job, on: Running) -> Iterator[Callable[[], Spent]]:
        """A load generator: each call does the job once, warm, and tells what the contender spent on it."""
        child = self._talk("load", "bench.load", json.dumps(asdict(job)))

        def once() -> Spent:
            _ask(child, "warm") or self._give_up("load", on)
            cpu, memory = on.child.cpu_seconds(), on.child.resident_kb()
            answer = _ask(child, "go") or self._give_up("load", on)
            spent = Spent(on.child.cpu_seconds() - cpu, on.child.resident_kb() - memory, json.loads(answer))
            _ask(child, "end") or self._give_up("load", on)
            return spent

        try:
            yield once
        finally:
            child.end()

    def _talk(self, name: str, module: str, *arguments: str) -> Child:
        return start_talking([sys.executable, "-m", module, *arguments], self._log(name), self._measuring)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _give_up(self, name: str, on: Running | None = None) -> str:
        said = [f"{name} failed" + (f" on {on.name}" if on else "")]
        for log in {name, on.name if on else name}:
            with contextlib.suppress(OSError):
                lines = self._log(log).read_text(errors="replace").splitlines()[-12:]
                said += [f"--- {log}", *(line[:300] for line in lines)]
        raise BenchError("\n".join(said))


def _read_line(child: Child) -> str:
    assert child.popen.stdout is not None
    return child.popen.stdout.readline().strip()


def _ask(child: Child, word: str) -> str:
    """What the load generator answers to `word`; nothing where it has ended."""
    assert child.popen.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        child.popen.stdin.write(f"{word}\n")
        child.popen.stdin.flush()
    return _read_line(child)


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers={"connection": "close"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
