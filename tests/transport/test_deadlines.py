"""Each phase has its deadline, and each deadline its exception."""

import asyncio

import httpx
import pytest

from gateway.transport import DeadlineExceeded, Engine, FirstByteTimeout, IdleTimeout, TransportSettings
from tests.support.upstream import Action, ScriptedUpstream, blackhole, forever, read, read_head, reply, send, stall
from tests.transport.exchanges import fetch, request, whole

OK = b"HTTP/1.1 200 OK\r\n"
SHORT = 0.03

PHASES: dict[str, tuple[list[Action], type[Exception]]] = {
    "first_byte": ([read(), stall()], FirstByteTimeout),
    "idle": ([read(), send(OK + b"content-length: 9\r\n\r\nhi"), stall()], IdleTimeout),
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("reused", [False, True])
async def test_silence_has_a_name_for_each_phase(engine: Engine, phase: str, reused: bool) -> None:
    script, timeout = PHASES[phase]
    async with ScriptedUpstream([read(), reply(), *script] if reused else script) as upstream:
        if reused:
            await fetch(engine, request(upstream.url))
        with pytest.raises(timeout):
            await fetch(engine, request(upstream.url, timeouts={phase: SHORT}))

        assert repr(engine) == f"<Engine [{upstream.url}: 0 active, 0 idle, 0 waiting]>"


async def test_a_head_that_has_begun_is_under_the_idle_deadline(engine: Engine) -> None:
    async with ScriptedUpstream([read(), send(OK), stall()]) as upstream:
        with pytest.raises(IdleTimeout):
            await fetch(engine, request(upstream.url, timeouts={"idle": SHORT}))


async def test_an_informational_response_is_not_the_first_byte(engine: Engine) -> None:
    async with ScriptedUpstream([read(), send(b"HTTP/1.1 100 Continue\r\n\r\n"), stall()]) as upstream:
        with pytest.raises(FirstByteTimeout):
            await fetch(engine, request(upstream.url, timeouts={"first_byte": SHORT}))


async def test_a_peer_that_does_not_read_is_a_write_timeout(engine: Engine) -> None:
    async with ScriptedUpstream([read_head(), stall()]) as upstream:
        with pytest.raises(httpx.WriteTimeout):
            await fetch(engine, request(upstream.url, bytes(32 << 20), timeouts={"write": SHORT}))


async def test_a_pool_without_a_free_connection_is_a_pool_timeout() -> None:
    engine = Engine(TransportSettings(max_connections=1))
    async with ScriptedUpstream([read(), send(OK + b"content-length: 9\r\n\r\n"), stall()]) as upstream:
        response = await engine.handle_async_request(request(upstream.url))
        with pytest.raises(httpx.PoolTimeout):
            await fetch(engine, request(upstream.url, timeouts={"pool": SHORT}))

        assert repr(engine) == f"<Engine [{upstream.url}: 1 active, 0 idle, 0 waiting]>"
        await response.aclose()
    await engine.aclose()


async def test_a_connection_that_is_never_made_is_a_connect_timeout(engine: Engine) -> None:
    with blackhole() as url:
        with pytest.raises(httpx.ConnectTimeout):
            await fetch(engine, request(url, timeouts={"connect": SHORT}))

        assert repr(engine) == f"<Engine [{url}: 0 active, 0 idle, 0 waiting]>"


STALLS: dict[str, list[Action]] = {
    "write": [read_head(), stall()],
    "first byte": [read(), stall()],
    "head": [read(), send(OK), stall()],
    "body": [read(), send(OK + b"content-length: 9\r\n\r\nhi"), stall()],
}


@pytest.mark.parametrize("phase", STALLS)
async def test_the_total_deadline_is_itself_in_every_phase(engine: Engine, phase: str) -> None:
    async with ScriptedUpstream(STALLS[phase]) as upstream:
        with pytest.raises(DeadlineExceeded):
            await fetch(engine, _total(upstream.url, SHORT, bytes(32 << 20) if phase == "write" else b"{}"))


async def test_the_total_deadline_is_itself_while_connecting(engine: Engine) -> None:
    with blackhole() as url, pytest.raises(DeadlineExceeded):
        await fetch(engine, _total(url, SHORT))


async def test_the_total_deadline_is_itself_while_waiting_for_a_connection() -> None:
    engine = Engine(TransportSettings(max_connections=1))
    async with ScriptedUpstream([read(), stall()]) as upstream, asyncio.TaskGroup() as tasks:
        first = tasks.create_task(fetch(engine, request(upstream.url)))
        await upstream.wait_until(lambda: len(upstream.requests) == 1)
        with pytest.raises(DeadlineExceeded):
            await fetch(engine, _total(upstream.url, SHORT))
        first.cancel()
    await engine.aclose()


async def test_nothing_is_sent_when_the_deadline_has_passed(engine: Engine) -> None:
    async with ScriptedUpstream([read(), reply()]) as upstream:
        with pytest.raises(DeadlineExceeded):
            await fetch(engine, _total(upstream.url, 0.0))

        assert upstream.accepted == 0


async def test_the_total_deadline_ends_a_stream_that_never_pauses(engine: Engine) -> None:
    chunk = b"5\r\nhello\r\n" * 100
    endless = [read(), send(OK + b"transfer-encoding: chunked\r\n\r\n"), forever(send(chunk))]
    async with ScriptedUpstream(endless) as upstream:
        with pytest.raises(DeadlineExceeded):
            await fetch(engine, _total(upstream.url, 0.05))


async def test_the_total_deadline_ends_a_response_that_nobody_reads(engine: Engine) -> None:
    async with ScriptedUpstream([read(), send(OK + b"content-length: 9\r\n\r\nhi")]) as upstream:
        await engine.handle_async_request(_total(upstream.url, SHORT))

        await upstream.wait_until(lambda: upstream.open_connections == 0)


async def test_a_stream_has_a_deadline_that_can_be_moved(engine: Engine) -> None:
    async with ScriptedUpstream([read(), send(OK + b"content-length: 9\r\n\r\nhi"), stall()]) as upstream:
        response = await engine.handle_async_request(_total(upstream.url, 100.0))
        response.stream.deadline = asyncio.get_running_loop().time() + SHORT  # type: ignore[union-attr]

        with pytest.raises(DeadlineExceeded):
            await whole(response)


async def test_progress_moves_the_idle_deadline(engine: Engine) -> None:
    idle = 0.2
    drops = [send(b"x"), _pause(0.05)] * 6
    async with ScriptedUpstream([read(), send(OK + b"content-length: 6\r\n\r\n"), *drops]) as upstream:
        assert await fetch(engine, request(upstream.url, timeouts={"idle": idle})) == (200, b"xxxxxx")


async def test_a_pause_of_the_reader_is_not_the_silence_of_the_upstream(engine: Engine) -> None:
    gate = asyncio.Event()

    async def finish(peer: object) -> None:
        await gate.wait()

    script = [read(), send(OK + b"content-length: 4\r\n\r\nhi"), finish, send(b"ya")]
    async with ScriptedUpstream(script) as upstream:
        response = await engine.handle_async_request(request(upstream.url, timeouts={"idle": SHORT}))
        loop, rung = asyncio.get_running_loop(), asyncio.Event()
        loop.call_later(3 * SHORT, rung.set)
        await rung.wait()
        gate.set()

        assert await whole(response) == b"hiya"


async def test_deadlines_of_one_request_do_not_touch_the_next(engine: Engine) -> None:
    async with ScriptedUpstream([read(), reply(), read(), _pause(3 * SHORT), reply(b"late")]) as upstream:
        await fetch(engine, request(upstream.url, timeouts={"first_byte": SHORT, "idle": SHORT}))

        assert await fetch(engine, httpx.Request("POST", upstream.url, content=b"{}")) == (200, b"late")


def _total(url: str, seconds: float, body: bytes = b"{}") -> httpx.Request:
    sent = request(url, body)
    sent.extensions["deadline"] = asyncio.get_running_loop().time() + seconds
    return sent


def _pause(seconds: float) -> Action:
    async def act(peer: object) -> None:
        passed = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds, passed.set)
        await passed.wait()

    return act
