"""How many connections there are, how long they live, and who gets the next one."""

import asyncio

import pytest

from gateway.transport import Engine, TransportSettings
from tests.support.upstream import ScriptedUpstream, forever, read, reply, wait_for
from tests.transport.exchanges import fetch, request


async def open_engine(**settings: float) -> Engine:
    return Engine(TransportSettings(**settings))  # type: ignore[arg-type]


async def test_no_more_connections_than_allowed_and_first_come_first_served() -> None:
    engine = await open_engine(max_connections=2)
    gate = asyncio.Event()
    async with ScriptedUpstream([read(), wait_for(gate), reply(), forever(read(), reply())]) as upstream:
        tasks = [asyncio.create_task(fetch(engine, request(f"{upstream.url}/{n}"))) for n in range(8)]
        await upstream.wait_until(lambda: len(upstream.requests) == 2)
        assert repr(engine) == f"<Engine [{upstream.url}: 2 active, 0 idle, 6 waiting]>"
        gate.set()
        await asyncio.gather(*tasks)

        assert upstream.accepted == 2
        assert sorted(received.path for received in upstream.requests[:2]) == ["/0", "/1"]
        waited = [received.path for received in upstream.requests[2:]]
        assert sorted(waited) == waited
        assert repr(engine) == f"<Engine [{upstream.url}: 0 active, 2 idle, 0 waiting]>"
    await engine.aclose()


async def test_an_idle_connection_is_closed_in_time() -> None:
    engine = await open_engine(keepalive_expiry=0.03)
    async with ScriptedUpstream([forever(read(), reply())]) as upstream:
        await fetch(engine, request(upstream.url))
        await upstream.wait_until(lambda: upstream.open_connections == 0)

        assert repr(engine) == f"<Engine [{upstream.url}: 0 active, 0 idle, 0 waiting]>"
    await engine.aclose()


async def test_an_idle_connection_is_closed_when_it_is_old() -> None:
    engine = await open_engine(max_connection_age=0.03)
    async with ScriptedUpstream([forever(read(), reply())]) as upstream:
        await fetch(engine, request(upstream.url))
        await upstream.wait_until(lambda: upstream.open_connections == 0)
    await engine.aclose()


async def test_an_old_connection_finishes_what_it_has_and_is_not_used_again() -> None:
    engine = await open_engine(max_connection_age=0.03)
    gate = asyncio.Event()
    async with ScriptedUpstream([read(), wait_for(gate), reply(), forever(read(), reply())]) as upstream:
        task = asyncio.create_task(fetch(engine, request(upstream.url)))
        asyncio.get_running_loop().call_later(0.06, gate.set)

        assert await task == (200, b"{}")
        assert repr(engine) == f"<Engine [{upstream.url}: 0 active, 0 idle, 0 waiting]>"
    await engine.aclose()


async def test_origins_do_not_share_connections(engine: Engine) -> None:
    script = [forever(read(), reply())]
    async with ScriptedUpstream(script) as one, ScriptedUpstream(script) as other:
        for upstream in (one, other, one, other):
            await fetch(engine, request(upstream.url))

        assert repr(engine) == (
            f"<Engine [{one.url}: 0 active, 1 idle, 0 waiting, {other.url}: 0 active, 1 idle, 0 waiting]>"
        )


async def test_a_place_that_could_not_be_filled_goes_to_the_next_in_the_queue() -> None:
    engine = await open_engine(max_connections=1)
    async with ScriptedUpstream([read(), reply()]) as upstream:
        gone = upstream.url
    tasks = [asyncio.create_task(fetch(engine, request(gone))) for _ in range(3)]
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(result).__name__ for result in results] == ["ConnectError"] * 3
    assert repr(engine) == f"<Engine [{gone}: 0 active, 0 idle, 0 waiting]>"
    await engine.aclose()


@pytest.mark.parametrize(
    "settings",
    [{"proxy": "http://127.0.0.1:3128"}, {"client_key": "key.pem"}, {"max_connections": 0}],
)
def test_settings_that_can_not_work_are_refused(settings: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"need|must"):
        TransportSettings(**settings)  # type: ignore[arg-type]
