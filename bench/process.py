"""Processes as the bench sees them: start one, read what it has used, end it by its id.

CPU time comes from the kernel's own clock of a process (user and system time of all its threads, in nanoseconds; the
same sum that /proc/<pid>/stat shows in ticks of 10 ms), so that a second of load is enough to tell 1 % apart.
"""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_CPUCLOCK_SCHED = 2
_PATIENCE = 5.0


class Child:
    """A process that the bench has started, with all that came of it. It ends when `end` is called."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen = popen
        self.pid = popen.pid

    def family(self) -> list[int]:
        """The process and its descendants that are alive now."""
        parents = _parents()
        family = [self.pid]
        for pid in family:  # grows as it goes
            family += [child for child, parent in parents.items() if parent == pid]
        return family

    def cpu_seconds(self) -> float:
        """User and system time that the family has used so far."""
        return sum(_cpu_clock(pid) for pid in self.family())

    def resident_kb(self) -> int:
        """Resident memory of the family, in KB."""
        return sum(_resident_kb(pid) for pid in self.family())

    def end(self) -> None:
        """End it and its descendants: asked first, then killed."""
        family = self.family()
        if self.popen.poll() is None:
            self.popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(_PATIENCE)
        for pid in family[1:]:
            _kill(pid)
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class Machine:
    """What became of the cores' time since this was made: the less is lost to others, the better the figures."""

    def __init__(self) -> None:
        self._before = _core_times()
        self._ours_before = _own_times()

    def lost(self) -> tuple[float, float]:
        """The shares of all cores' time that other processes here used, and that the host kept for others."""
        all_, busy, kept = (now - before for now, before in zip(_core_times(), self._before, strict=True))
        others = busy - (_own_times() - self._ours_before)
        return max(0.0, others / all_), kept / all_


def start(command: Sequence[str], environment: Mapping[str, str], log: Path, cores: set[int]) -> Child:
    """Start `command` on `cores`, in a session of its own, with what it prints going to the file `log`."""
    with log.open("ab") as out, _on(cores):
        return Child(
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
                text=True,
            )
        )


def start_talking(command: Sequence[str], log: Path, cores: set[int]) -> Child:
    """Start a part of the bench itself, with which it speaks line by line."""
    with log.open("ab") as err, _on(cores):
        return Child(
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                start_new_session=True,
                text=True,
            )
        )


def free_port() -> int:
    """A port on 127.0.0.1 that the kernel says is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


def split_cores() -> tuple[set[int], set[int]]:
    """One core for what is measured, and the others for what measures it; where there is one core, they share it."""
    first, *others = sorted(os.sched_getaffinity(0))
    return {first}, set(others) or {first}


@contextlib.contextmanager
def _on(cores: set[int]) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # what is started now inherits it
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _core_times() -> tuple[float, float, float]:
    """Seconds of all cores since boot: in all, at work, and kept by the host."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _, _, irq, softirq, steal = (tick / os.sysconf("SC_CLK_TCK") for tick in ticks)
    return sum(ticks) / os.sysconf("SC_CLK_TCK"), user + nice + system + irq + softirq, steal


def _own_times() -> float:
    """CPU seconds of the bench and of all that it has started and seen end."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _cpu_clock(pid: int) -> float:
    try:
        return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:  # it ended meanwhile
        return 0.0


def _resident_kb(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")), 0)


def _parents() -> dict[int, int]:
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                after_name = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = int(after_name[1])
    return parents


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 9)
