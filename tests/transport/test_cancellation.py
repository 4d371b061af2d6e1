"""A caller that leaves takes its connection with it, in every phase, and leaves nothing behind."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from gateway.transport import Engine, TransportSettings
from tests.support.upstream import (
    Action,
    ScriptedUpstream,
    blackhole,
    forever,
    read,
    read_head,
    reply,
    send,
    wait_for,
)
from tests.transport.exchanges import descriptors, fetch, request

OK = b"HTTP/1.1 200 OK\r\n"


@asynccontextmanager
async def nothing_left(engine: Engine, upstream: ScriptedUpstream) -> AsyncIterator[None]:
    """As many file descriptors and tasks after as before, and nothing active or waiting in the engine."""
    await fetch(engine, request(upstream.url, method="HEAD"))  # what is made once is made now
    await upstream.wait_until(lambda: upstream.open_connections == 0)
    before = descriptors(), len(asyncio.all_tasks())
    yield
    await upstream.wait_until(lambda: upstream.open_connections == 0)
    for _ in range(5):
        await asyncio.sleep(0)

    assert " 0 active, " in repr(engine)
    assert " 0 waiting" in repr(engine)
    assert (descriptors(), len(asyncio.all_tasks())) == before


PHASES: dict[str, list[Action]] = {
    "write": [read_head()],
    "first byte": [read()],
    "head": [read(), send(OK)],
    "body": [read(), send(OK + b"content-length: 9\r\n\r\nhi")],
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("streamed", [False, True])
async def test_leaving_while_the_upstream_is_silent_closes_the_connection(
    engine: Engine, phase: str, streamed: bool
) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(512 if phase == "write" else 1):
            yield bytes(65536)

    left = asyncio.Event()
    upstream = ScriptedUpstream([read(), reply()], [*PHASES[phase], wait_for(left)])
    async with upstream, nothing_left(engine, upstream):
        body = bytes(32 << 20) if phase == "write" else b"{}"
        sent = httpx.Request("POST", upstream.url, content=parts() if streamed else body)
        task = asyncio.create_task(fetch(engine, sent))
        await upstream.wait_until(lambda: upstream.accepted == 2)
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        left.set()


async def test_leaving_while_connecting_leaves_no_socket(engine: Engine) -> None:
    upstream = ScriptedUpstream([read(), reply()])
    with blackhole() as url:
        async with upstream, nothing_left(engine, upstream):
            task = asyncio.create_task(fetch(engine, request(url)))
            for _ in range(5):
                await asyncio.sleep(0)
            assert f"{url}: 1 active" in repr(engine)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_leaving_the_queue_leaves_the_queue() -> None:
    engine = Engine(TransportSettings(max_connections=1))
    gate = asyncio.Event()
    async with ScriptedUpstream([read(), wait_for(gate), reply(), forever(read(), reply())]) as upstream:
        first = asyncio.create_task(fetch(engine, request(upstream.url)))
        await upstream.wait_until(lambda: len(upstream.requests) == 1)
        waiters = [asyncio.create_task(fetch(engine, request(f"{upstream.url}/{n}"))) for n in range(3)]
        await asyncio.sleep(0)
        assert repr(engine) == f"<Engine [{upstream.url}: 1 active, 0 idle, 3 waiting]>"

        waiters[1].cancel()
        gate.set()
        results = await asyncio.gather(first, *waiters, return_exceptions=True)

        assert [type(result) for result in results] == [tuple, tuple, asyncio.CancelledError, tuple]
        assert [received.path for received in upstream.requests] == ["/", "/0", "/2"]
        assert repr(engine) == f"<Engine [{upstream.url}: 0 active, 1 idle, 0 waiting]>"
    await engine.aclose()


async def _hand_back(response: httpx.Response) -> None:
    async for _ in response.stream:  # type: ignore[union-attr]
        pass


async def _hang_up(response: httpx.Response) -> None:
    await response.aclose()


@pytest.mark.parametrize("give", [_hand_back, _hang_up])
async def test_what_is_given_to_a_waiter_that_leaves_in_that_moment_goes_to_the_next(
    give: Callable[[httpx.Response], object],
) -> None:
    engine = Engine(TransportSettings(max_connections=1))
    gate = asyncio.Event()
    head = OK + b"content-length: 2\r\n\r\n"
    script = [read(), send(head), wait_for(gate), send(b"hi"), forever(read(), reply())]
    async with ScriptedUpstream(script, [forever(read(), reply())]) as upstream:
        response = await engine.handle_async_request(request(upstream.url))
        pool = next(iter(engine.pools.values()))
        leaving = asyncio.create_task(fetch(engine, request(upstream.url)))
        staying = asyncio.create_task(fetch(engine, request(upstream.url)))
        await asyncio.sleep(0)
        assert pool.waiting == 2
        if give is _hang_up:
            await response.aclose()
        else:
            gate.set()
            while pool.waiting == 2:
                await asyncio.sleep(0)
        leaving.cancel()

        assert await staying == (200, b"{}")
        assert leaving.cancelled()
        assert repr(engine) == f"<Engine [{upstream.url}: 0 active, 1 idle, 0 waiting]>"
    await engine.aclose()
