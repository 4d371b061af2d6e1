"""How many connections there are, how long they live, and who gets the next one."""

import asyncio

import httpx
import pytest

from gateway.transport import Engine, PreparedRequest, Target, TransportSettings
from gateway.transport.connection import Connection
from gateway.transport.pool import Pool
from gateway.transport.request import Origin
from tests.support.upstream import ScriptedUpstream, blackhole, close, forever, read, reply, wait_for
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


async def test_a_pool_that_nobody_uses_is_dropped_when_another_is_opened(engine: Engine) -> None:
    async with ScriptedUpstream([read(), reply(headers=["connection: close"])], host="0.0.0.0") as upstream:
        url = f"http://upstream.test:{upstream.port}"
        for number in range(1, 20):
            target = Target("GET", httpx.URL(url), address=f"127.0.0.{number}")
            await fetch(engine, PreparedRequest(target, [], b"", {}))

        assert upstream.accepted == 19
        assert repr(engine) == f"<Engine [{url} at 127.0.0.19: 0 active, 0 idle, 0 waiting]>"


async def test_a_pool_is_kept_while_it_has_a_connection_or_somebody_waits_for_one() -> None:
    engine = await open_engine(max_connections=1)
    gate = asyncio.Event()
    busy_script = [read(), wait_for(gate), reply(), forever(read(), reply())]
    async with ScriptedUpstream(busy_script) as busy, ScriptedUpstream([forever(read(), reply())]) as idle:
        with blackhole() as dialled:
            await fetch(engine, request(idle.url))
            async with asyncio.TaskGroup() as tasks:
                served = [tasks.create_task(fetch(engine, request(busy.url))) for _ in range(2)]
                dialling = tasks.create_task(fetch(engine, request(dialled)))
                await busy.wait_until(lambda: len(busy.requests) == 1)
                engine._open_pool(Origin("http", "elsewhere.test", 80))
                assert repr(engine) == (
                    f"<Engine [{idle.url}: 0 active, 1 idle, 0 waiting, {busy.url}: 1 active, 0 idle, 1 waiting, "
                    f"{dialled}: 1 active, 0 idle, 0 waiting, http://elsewhere.test:80: 0 active, 0 idle, 0 waiting]>"
                )
                gate.set()
                assert await asyncio.gather(*served) == [(200, b"{}")] * 2
                dialling.cancel()
    await engine.aclose()


async def test_a_stale_connection_is_replaced_also_where_its_pool_was_dropped_meanwhile(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(pool: Pool, connection: Connection) -> None:
        real(pool, connection)
        engine._open_pool(Origin("http", "elsewhere.test", 80))

    real = Pool.forget
    async with ScriptedUpstream([read(), reply(), read(), close()], [forever(read(), reply(b"new"))]) as upstream:
        await fetch(engine, request(upstream.url))
        (first,) = engine.pools.values()
        with monkeypatch.context() as patched:
            patched.setattr(Pool, "forget", forget)
            assert await fetch(engine, request(upstream.url)) == (200, b"new")

        assert first not in engine.pools.values()
        assert repr(engine).endswith(f"{upstream.url}: 0 active, 1 idle, 0 waiting]>")


@pytest.mark.parametrize(
    "settings",
    [{"proxy": "http://127.0.0.1:3128"}, {"client_key": "key.pem"}, {"max_connections": 0}],
)
def test_settings_that_can_not_work_are_refused(settings: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"need|must"):
        TransportSettings(**settings)  # type: ignore[arg-type]
