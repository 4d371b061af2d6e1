"""A caller who reads slowly, or not at all: what waits for him is bounded, and so is the time it waits."""

import asyncio
import fcntl
import socket

import pytest

from gateway.api.protocol import ClientDisconnected, Connection
from tests.socket.apps import Held, Receive, Scope, Send, reply
from tests.socket.conftest import Site, Start
from tests.support.client import Caller, rounds

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
KIB = 1024


class Flood:
    """Sends messages of `size` for ever, and tells how many were taken."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.sent = 0
        self.ended: BaseException | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * self.size, "more_body": True})
                self.sent += self.size
                await asyncio.sleep(0)
        except BaseException as error:
            self.ended = error
            raise


async def narrow(site: Site) -> Connection:
    """Make the kernel hold little of what the server sends, so that its own buffer fills soon."""
    connection = await site.connection()
    own = connection._transport.get_extra_info("socket")
    own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * KIB)
    return connection


async def widen(site: Site) -> None:
    """Make the kernel hold much, as it does by itself where it can't be told not to."""
    own = (await site.connection())._transport.get_extra_info("socket")
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 0x7FFFFFFF)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1000 * KIB)


async def blocked(site: Site) -> Connection:
    connection = await site.connection()
    async with asyncio.timeout(10):
        while connection.blocked is None:
            await asyncio.sleep(0)
    return connection


@pytest.mark.parametrize("size", [100, 10 * KIB, 1000 * KIB])
async def test_what_waits_for_a_slow_reader_is_bounded(serve: Start, size: int) -> None:
    app = Flood(size)
    site = await serve(app)
    async with await site.caller(receive_buffer=64 * KIB) as caller:
        await narrow(site)
        await caller.send(GET)
        connection = await blocked(site)
        assert connection._transport.get_write_buffer_size() <= 256 * KIB
        sent = app.sent
        await rounds(20)
        assert app.sent == sent
        await caller.read_exactly(size + sent)
        async with asyncio.timeout(10):
            while app.sent == sent:
                await caller.read_exactly(64 * KIB)
        assert connection._transport.get_write_buffer_size() <= 256 * KIB


async def test_a_large_answer_arrives_whole_and_is_not_held_twice(serve: Start) -> None:
    body = bytes(range(256)) * 4 * KIB

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await reply(send, body)

    site = await serve(app)
    async with await site.caller(receive_buffer=64 * KIB) as caller:
        await narrow(site)
        for _ in range(2):
            await caller.send(GET)
            connection = await blocked(site)
            assert connection._transport.get_write_buffer_size() <= 256 * KIB
            assert (await caller.response()).body == body


async def test_a_caller_who_takes_nothing_is_cut_off(serve: Start) -> None:
    app = Flood(10 * KIB)
    site = await serve(app, stall_seconds=0.05)
    async with await site.caller(receive_buffer=64 * KIB) as caller:
        await narrow(site)
        await caller.send(GET)
        await site.quiet()
        assert isinstance(app.ended, ClientDisconnected)


async def test_a_caller_who_takes_nothing_of_the_last_bytes_is_cut_off_too(serve: Start) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await reply(send, b"x" * 180 * KIB, 200, (b"connection", b"close"))

    site = await serve(app, stall_seconds=0.05)
    async with await site.caller(receive_buffer=2 * KIB) as caller:
        own = (await site.connection())._transport.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * KIB)
        await caller.send(GET)
        await site.quiet()


async def takes(caller: Caller, connection: Connection, size: int) -> int:
    """Read at least `size` bytes, and on until the server's side can see it. Tells how much was seen."""
    before = connection._held()
    while before - connection._held() < size:
        assert connection.blocked is not None
        await caller.read_exactly(4 * KIB)
        await asyncio.sleep(0)
    return before - connection._held()


def look(connection: Connection, *, after: float) -> None:
    """Let the connection look at its reader as if it had waited for `after` seconds since the last look."""
    connection._write_by = 0.0
    connection._unsent_since -= after
    connection._cut_at -= after
    connection._ring()


async def test_a_caller_who_takes_a_little_is_borne_with(serve: Start) -> None:
    site = await serve(Flood(10 * KIB))
    async with await site.caller(receive_buffer=64 * KIB) as caller:
        await narrow(site)
        await caller.send(GET)
        connection = await blocked(site)
        await takes(caller, connection, 48 * KIB)
        look(connection, after=31.0)
        assert not connection._transport.is_closing()
        look(connection, after=31.0)  # nothing was taken in between
        assert connection._transport.is_closing()


async def test_what_the_kernel_holds_does_not_hide_that_the_caller_takes_it(serve: Start) -> None:
    site = await serve(Flood(10 * KIB))
    async with await site.caller(receive_buffer=64 * KIB) as caller:
        await widen(site)
        await caller.send(GET)
        connection = await blocked(site)
        unsent = connection._transport.get_write_buffer_size()
        assert connection._held() > unsent
        for _ in range(5):
            await takes(caller, connection, 48 * KIB)
            assert connection._transport.get_write_buffer_size() == unsent
            look(connection, after=31.0 / 5)
            assert not connection._transport.is_closing()


async def test_a_caller_who_takes_less_than_the_rate_is_cut_off_after_the_time_allowed(serve: Start) -> None:
    site = await serve(Flood(10 * KIB), answer_rate=1e6)
    async with await site.caller(receive_buffer=64 * KIB) as caller:
        await widen(site)
        await caller.send(GET)
        connection = await blocked(site)
        for _ in range(2):
            await takes(caller, connection, 20 * KIB)
            look(connection, after=14.5)  # borne with, whatever he takes
            assert not connection._transport.is_closing()
        await takes(caller, connection, 20 * KIB)
        look(connection, after=1.0)
        assert connection._transport.is_closing()


async def test_what_was_taken_buys_time_at_the_rate(serve: Start) -> None:
    site = await serve(Flood(10 * KIB), answer_rate=500.0)
    async with await site.caller(receive_buffer=64 * KIB) as caller:
        await widen(site)
        await caller.send(GET)
        connection = await blocked(site)
        taken = await takes(caller, connection, 48 * KIB)
        look(connection, after=taken / 500 - 10)
        assert connection._cut_at == pytest.approx(connection._unsent_since + taken / 500)


async def test_a_stream_that_says_little_is_under_no_rate(serve: Start) -> None:
    app = Held(begins=True)
    site = await serve(app, stall_seconds=0.001, answer_rate=1e9)
    async with await site.caller() as caller:
        await caller.send(GET)
        await app.entered.wait()
        connection = await site.connection()
        assert (connection.blocked, connection._write_by) == (None, None)
        app.go.set()
        assert (await caller.response()).body == b"onetwo"


async def test_the_kernel_holds_little_that_it_can_not_send(serve: Start) -> None:
    site = await serve(Flood(10 * KIB))
    async with await site.caller(receive_buffer=64 * KIB) as caller:
        await caller.send(GET)
        connection = await blocked(site)
        await rounds(20)
        assert connection._held() - connection._transport.get_write_buffer_size() <= 512 * KIB


async def test_where_the_kernel_does_not_tell_the_buffer_alone_is_looked_at(
    serve: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError

    site = await serve(Flood(10 * KIB))
    async with await site.caller() as caller:
        monkeypatch.setattr(fcntl, "ioctl", refuse)
        await caller.send(GET)
        connection = await blocked(site)
        assert connection._held() == connection._transport.get_write_buffer_size()


async def test_a_message_cut_off_in_the_middle_is_not_followed_by_another(serve: Start) -> None:
    ended: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await send({"type": "http.response.body", "body": b"x" * 2_000_000, "more_body": True})
        except asyncio.CancelledError:
            connection = await site.connection()
            connection.resume_writing()
            try:
                await send({"type": "http.response.body", "body": b"the end"})
            except OSError as error:
                ended.append(error)

    site = await serve(app)
    async with await site.caller(receive_buffer=64 * KIB) as caller:
        await narrow(site)
        await caller.send(GET)
        await blocked(site)
        (task,) = site.state.tasks
        task.cancel()
        await site.quiet()
    assert [type(error) for error in ended] == [ClientDisconnected]
