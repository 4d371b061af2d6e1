"""The threads that look names up: few, in order, and none that keeps the process."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from gateway.transport.resolver import DaemonThreads

HANGING = """
import asyncio, socket, threading
import httpx
from gateway.transport import Engine
socket.getaddrinfo = lambda *_: threading.Event().wait()

async def main():
    engine = Engine()
    timeout = {"connect": 0.05}
    for _ in range(6):  # more than there are threads
        try:
            await engine.handle_async_request(httpx.Request("GET", "http://name.test", extensions={"timeout": timeout}))
        except httpx.ConnectTimeout:
            print("late")
    await engine.aclose()

asyncio.run(main())
"""


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Holds up what waits for it, until the end of the test at the latest."""
    event = threading.Event()
    yield event
    event.set()


def test_a_name_server_that_hangs_does_not_keep_the_process() -> None:
    ended = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=20, check=False)

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "late\n" * 6, "")


def test_what_is_asked_is_answered_with_a_result_or_its_failure() -> None:
    threads = DaemonThreads(2)
    asked = [threads.submit(divmod, 7, by) for by in (2, 0, 3)]

    assert asked[0].result(10) == (3, 1)
    assert isinstance(asked[1].exception(10), ZeroDivisionError)
    assert asked[2].result(10) == (2, 1)


def test_no_more_run_at_once_than_are_allowed_and_the_rest_run_in_turn(gate: threading.Event) -> None:
    threads = DaemonThreads(2)
    running = threading.Barrier(3, timeout=10)
    order: list[int] = []

    def hold() -> None:
        running.wait()
        gate.wait()

    held = [threads.submit(hold) for _ in range(2)]
    rest = [threads.submit(order.append, number) for number in range(3)]
    running.wait()
    assert (threads._threads, order) == (2, [])
    gate.set()
    for future in (*held, *rest):
        future.result(10)
    assert sorted(order) == [0, 1, 2]


def test_threads_end_when_there_is_nothing_to_do() -> None:
    threads = DaemonThreads(1)
    thread = threads.submit(threading.current_thread).result(10)
    thread.join(10)

    assert not thread.is_alive()
    assert threads._threads == 0
    assert threads.submit(threading.current_thread).result(10) is not thread


def test_what_nobody_waits_for_any_more_is_neither_kept_nor_run(gate: threading.Event) -> None:
    threads = DaemonThreads(1)
    order: list[int] = []
    held = threads.submit(gate.wait)
    given_up = [threads.submit(order.append, number) for number in range(3)]
    last = threads.submit(order.append, 3)
    for future in given_up:
        future.cancel()
    assert len(threads._waiting) <= 2  # the last, and the held one if its thread has not begun
    gate.set()
    last.result(10)
    assert held.result(10)
    assert order == [3]


def test_shutdown_cancels_what_waits_and_does_not_wait_for_what_runs(gate: threading.Event) -> None:
    threads = DaemonThreads(1)
    begun = threading.Event()

    def hold() -> None:
        begun.set()
        gate.wait()

    threads.submit(hold)
    assert begun.wait(10)
    waiting = threads.submit(gate.wait)
    threads.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(CancelledError):
        waiting.result(10)


async def test_an_answer_for_a_loop_that_is_gone_is_nobodys(gate: threading.Event) -> None:
    threads = DaemonThreads(1)
    future = asyncio.get_running_loop().run_in_executor(threads, gate.wait)
    future.cancel()
    gate.set()
    assert await asyncio.get_running_loop().run_in_executor(threads, divmod, 7, 2) == (3, 1)


def test_where_no_thread_is_to_be_had_it_is_said_and_the_next_one_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = DaemonThreads(1)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        for _ in range(3):
            with pytest.raises(OSError, match="no thread"):
                threads.submit(divmod, 7, 2).result(10)

    assert threads.submit(divmod, 7, 2).result(10) == (3, 1)
