"""Callers that leave at any moment, by the thousand: whatever they held must come back."""

import asyncio
import contextlib
import random

import httpx
import pytest

from gateway.transport import Engine, TransportSettings
from tests.support.upstream import Action, Peer, ScriptedUpstream, forever, read, send
from tests.transport.exchanges import descriptors, fetch, request

OK = b"HTTP/1.1 200 OK\r\n"
SLOTS = 10
CALLERS = 40


def whimsical(chance: random.Random) -> Action:
    """Answer in one of the ways in which upstreams answer, well or badly."""
    chunks = b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n", b"2\r\nho\r\n", b"0\r\n\r\n"
    answers = [
        send(OK + b"content-length: 2\r\n\r\nhi"),
        send(OK + b"content-length: 2\r\n\r\n", b"h", b"i"),
        send(OK + chunks[0], chunks[1], chunks[2]),
        send(OK + b"content-length: 2\r\n\r\nhi!"),
        send(OK + b"connection: close\r\ncontent-length: 2\r\n\r\nhi"),
    ]

    async def act(peer: Peer) -> None:
        if chance.random() < 0.02:
            peer.writer.transport.abort()
            peer.gone = True
            return
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        await chance.choice(answers)(peer)

    return act


async def storm(callers: int, seed: int) -> None:
    chance = random.Random(seed)
    engine = Engine(TransportSettings(max_connections=SLOTS))
    async with ScriptedUpstream([forever(read(), whimsical(chance))]) as upstream:
        before = descriptors(), len(asyncio.all_tasks())
        left = callers

        async def come_and_go() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                task = asyncio.create_task(_try(engine, request(upstream.url)))
                for _ in range(chance.randrange(40)):
                    await asyncio.sleep(0)
                    if task.done():
                        break
                task.cancel()
                await asyncio.wait([task])
                upstream.requests.clear()

        await asyncio.gather(*[come_and_go() for _ in range(CALLERS)])

        pool = next(iter(engine.pools.values()))
        assert (pool.active, pool.waiting) == (0, 0)
        assert pool.idle <= SLOTS
        served = await asyncio.gather(*[_served(engine, upstream) for _ in range(3 * SLOTS)])
        assert served == [200] * (3 * SLOTS)
        await engine.aclose()
        await upstream.wait_until(lambda: upstream.open_connections == 0)
        for _ in range(5):
            await asyncio.sleep(0)
        assert (descriptors(), len(asyncio.all_tasks())) == before


async def _try(engine: Engine, sent: httpx.Request) -> None:
    with contextlib.suppress(httpx.TransportError):
        await fetch(engine, sent)


async def _served(engine: Engine, upstream: ScriptedUpstream) -> int:
    """Every slot still works: somebody who stays gets an answer sooner or later."""
    while True:
        try:
            return (await fetch(engine, request(upstream.url)))[0]
        except httpx.TransportError:
            continue


async def test_five_hundred_that_leave_take_nothing_with_them() -> None:
    await storm(500, seed=1)


@pytest.mark.storms
async def test_a_hundred_thousand_that_leave_take_nothing_with_them() -> None:
    await storm(100_000, seed=2)
