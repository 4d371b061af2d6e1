"""uvicorn's own shutdown, with our connections; and TLS, where half of TCP's manners are missing."""

import asyncio
import ssl

import pytest
import trustme

from tests.socket.apps import Held, echo
from tests.socket.conftest import Start

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def test_shutdown_closes_the_idle_and_waits_for_the_busy(serve: Start) -> None:
    app = Held()
    site = await serve(app)
    async with await site.caller() as idle, await site.caller() as busy, await site.caller() as used:
        app.go.set()
        await used.send(GET)
        assert (await used.response()).status == 200
        app.go.clear()
        app.entered.clear()
        await busy.send(GET + GET)
        await app.entered.wait()
        leaving = asyncio.ensure_future(site.server.shutdown())
        assert await idle.closed()
        assert await used.closed()
        assert not leaving.done()
        app.go.set()
        response = await busy.response()
        assert (response.body, response.headers["connection"]) == (b"done", "close")
        assert await busy.closed()
        await leaving


async def test_a_stream_goes_on_to_its_end_during_shutdown(serve: Start) -> None:
    app = Held(begins=True)
    site = await serve(app)
    async with await site.caller() as caller:
        await caller.send(GET)
        await app.entered.wait()
        leaving = asyncio.ensure_future(site.server.shutdown())
        while site.server.servers[0].is_serving():
            await asyncio.sleep(0)
        app.go.set()
        assert (await caller.response()).body == b"onetwo"
        assert await caller.closed()
        await leaving


async def test_a_head_half_read_is_served_before_the_connection_closes(serve: Start) -> None:
    site = await serve(echo)
    async with await site.caller() as caller:
        await caller.send(GET[:-2])
        (await site.connection()).shutdown()
        await caller.send(GET[-2:])
        response = await caller.response()
        assert (response.status, response.headers["connection"]) == (200, "close")
        assert await caller.closed()


@pytest.mark.parametrize("head_seconds", [10.0, 0.5])
async def test_a_head_half_read_is_not_waited_for_long(serve: Start, head_seconds: float) -> None:
    site = await serve(echo, head_seconds=head_seconds)
    async with await site.caller() as caller:
        await caller.send(GET[:-2])
        connection = await site.connection()
        connection.shutdown()
        assert connection._read_by is not None
        assert connection._read_by - asyncio.get_running_loop().time() <= min(1.0, head_seconds)
        connection._read_by = 0.0  # the time is over
        connection._ring()
        response = await caller.response()
        assert (response.status, response.error["code"]) == (503, "server_shutting_down")
        assert await caller.closed()
    await site.quiet()
    assert [error.status for error in site.refused] == [503]


async def test_a_task_cancelled_at_the_end_of_the_drain_is_a_503(serve: Start) -> None:
    app = Held()
    site = await serve(app)
    async with await site.caller() as caller:
        await caller.send(GET)
        await app.entered.wait()
        (await site.connection()).shutdown()
        for task in site.state.tasks:
            task.cancel()
        response = await caller.response()
        assert (response.status, response.error["code"]) == (503, "server_shutting_down")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


async def test_it_speaks_under_tls(serve: Start, authority: trustme.CA) -> None:
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(ours)
    theirs = ssl.create_default_context()
    authority.configure_trust(theirs)
    site = await serve(echo, tls=ours, body_bytes=10)
    for request, status in ((GET, b"200"), (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n", b"413")):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=theirs, server_hostname="localhost")
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.split(b" ")[1] == status
        writer.close()
        await writer.wait_closed()
        await site.quiet()
