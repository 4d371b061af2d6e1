"""The virtual clock of the tests: what it jumps over, and what it waits for."""

import asyncio
import contextlib
import itertools
import socket
import threading
import time

import pytest

from tests.support.clock import StandstillError, VirtualLoop, virtual_time

anyio_backend = virtual_time


@pytest.fixture
def started() -> float:
    return time.monotonic()


async def test_ten_minutes_take_no_time(started: float) -> None:
    before = asyncio.get_running_loop().time()
    await asyncio.sleep(600)

    assert asyncio.get_running_loop().time() - before == 600
    assert time.monotonic() - started < 10


async def test_a_timeout_passes_at_its_time() -> None:
    loop = asyncio.get_running_loop()
    before = loop.time()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(30):
            await asyncio.Event().wait()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 12.5)

    assert loop.time() - before == 42.5


async def test_timers_ring_in_order_and_each_at_its_own_time() -> None:
    loop = asyncio.get_running_loop()
    before = loop.time()
    rung: list[float] = []
    for delay in (86.4, 0.1, 3600, 0.1, 7, 1e-6):
        loop.call_later(delay, lambda: rung.append(loop.time() - before))
    await asyncio.sleep(3601)

    assert rung == pytest.approx([1e-6, 0.1, 0.1, 7, 86.4, 3600])


async def test_a_timer_never_rings_before_its_time() -> None:
    loop = asyncio.get_running_loop()
    late: list[float] = []
    for number in range(1, 100):
        at = loop.time() + number * 0.1 + number**3 / 70
        loop.call_at(at, lambda at=at: late.append(loop.time() - at))  # type: ignore[misc]
    await asyncio.sleep(20_000)

    assert len(late) == 99
    assert -1e-9 < min(late) <= max(late) < 1e-9  # the loop's own resolution


async def test_what_is_ready_comes_before_the_next_timer() -> None:
    said: list[str] = []
    asyncio.get_running_loop().call_later(0.001, said.append, "timer")
    for _ in range(1000):
        await asyncio.sleep(0)
    said.append("ready")
    await asyncio.sleep(1)

    assert said == ["ready", "timer"]


async def test_what_goes_over_a_socket_takes_no_time() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    loop = asyncio.get_running_loop()
    before = loop.time()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, asyncio.timeout(1e-3):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for size in (1, 70_000, 1 << 20):
            writer.write(b"x" * size)
            assert await reader.readexactly(size) == b"x" * size
        writer.close()
        await writer.wait_closed()
        assert loop.time() == before


async def test_a_backoff_over_sockets_takes_its_time_and_no_other() -> None:
    times: list[float] = []

    def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        times.append(asyncio.get_running_loop().time())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        for wait in (1, 2, 4, 8):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await reader.read() == b""
            writer.close()
            await asyncio.sleep(wait)

    assert [later - earlier for earlier, later in itertools.pairwise(times)] == [1, 2, 4]


async def test_a_wake_up_from_a_thread_comes_before_the_next_timer() -> None:
    loop = asyncio.get_running_loop()
    woken = asyncio.Event()
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def help_out() -> None:
            theirs.recv(1)
            loop.call_soon_threadsafe(woken.set)

        thread = threading.Thread(target=help_out)
        thread.start()
        async with asyncio.timeout(60):
            work = loop.run_in_executor(None, thread.join)
            ours.send(b"x")
            await woken.wait()
            await work


async def test_a_thread_that_works_for_the_loop_is_given_time() -> None:
    before = asyncio.get_running_loop().time()
    async with asyncio.timeout(1e-3):
        assert await asyncio.to_thread(sum, range(1_000_000)) == 499_999_500_000

    assert asyncio.get_running_loop().time() == before


async def test_a_thread_that_does_not_come_back_does_not_stop_the_clock() -> None:
    go_on = threading.Event()
    work = asyncio.get_running_loop().run_in_executor(None, go_on.wait)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await asyncio.shield(work)
    go_on.set()
    assert await work


def test_waiting_for_nothing_fails_and_says_where() -> None:
    async def forget() -> None:
        await asyncio.Event().wait()

    with pytest.raises(StandstillError, match=r"stood still(.|\n)+forget"), _runner() as runner:
        runner.run(forget())


def test_going_round_for_nothing_fails() -> None:
    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(StandstillError, match="stood still"), _runner() as runner:
        runner.run(spin())


def test_bytes_that_come_for_ever_fail() -> None:
    async def flood() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours, theirs, contextlib.suppress(TimeoutError):
            ours.setblocking(False)
            theirs.setblocking(False)
            async with asyncio.timeout(1):
                while True:
                    loop.call_soon(ours.send, b"x")
                    await loop.sock_recv(theirs, 1)

    with pytest.raises(StandstillError, match="stood still"), _runner() as runner:
        runner.run(flood())


def test_timers_that_set_themselves_again_for_ever_fail() -> None:
    async def tick() -> None:
        while True:
            await asyncio.sleep(3600)

    with pytest.raises(StandstillError, match=r"a day has gone by(.|\n)+tick"), _runner() as runner:
        runner.run(tick())


def _runner() -> asyncio.Runner:
    return asyncio.Runner(loop_factory=lambda: VirtualLoop(patience=0.05))
