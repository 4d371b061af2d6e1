"""A real gateway whose stdout nobody reads any more, or never has: callers do not notice, and what is lost is counted."""

import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.processes import PATIENCE

COMMAND = [str(Path(sys.executable).parent / "gateway"), "demo", "--port", "0"]
BODY = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "hi"}]}).encode()
CALLS = 20


@contextmanager
def demo() -> Iterator[tuple[int, str, str]]:
    """The end of its stdout from which nothing is read but that it listens; and its two URLs."""
    reading, writing = os.pipe()
    with subprocess.Popen(COMMAND, stdout=writing, stderr=subprocess.DEVNULL) as process:
        os.close(writing)
        try:
            said = json.loads(_line(reading))
            yield (
                reading,
                f"http://{said['host']}:{said['port']}",
                f"http://{said['admin_host']}:{said['admin_port']}",
            )
            assert process.poll() is None
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def _line(descriptor: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(descriptor, 1)
    return line


def _ask(url: str) -> int:
    headers = {"content-type": "application/json", "authorization": "Bearer any"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{url}/v1/chat/completions", BODY, headers), timeout=PATIENCE
    ) as one:
        return int(one.status)


def _dropped(url: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=PATIENCE) as answer:
        page = answer.read().decode()
    return next(float(line.split()[1]) for line in page.splitlines() if line.startswith("gateway_log_lines_dropped "))


def test_a_closed_stdout_costs_lines_and_no_answers() -> None:
    with demo() as (reading, url, admin):
        os.close(reading)
        assert [_ask(url) for _ in range(CALLS)] == [200] * CALLS
        deadline = threading.Event()
        while _dropped(admin) < CALLS:  # a line is lost when it would be written, a moment after its call
            assert not deadline.wait(0.01)
        assert _dropped(admin) == CALLS


def test_a_full_stdout_makes_nobody_wait() -> None:
    with demo() as (reading, url, admin):
        _fill(reading)
        assert [_ask(url) for _ in range(CALLS)] == [200] * CALLS
        assert _dropped(admin) == 0  # they wait, as long as there is room for them
        os.close(reading)


def _fill(reading: int) -> None:
    """Put so much into the pipe that nothing more goes in, by its other end, which Linux opens for anybody."""
    try:
        writing = os.open(f"/proc/self/fd/{reading}", os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        pytest.fail("this needs Linux")
    try:
        while True:
            os.write(writing, b"x" * 4096)
    except BlockingIOError:
        os.close(writing)
