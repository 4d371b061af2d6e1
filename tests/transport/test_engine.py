"""What only our engine promises: stale connections, early answers, strict parsing, back-pressure, visible state."""

import asyncio
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from gateway.transport import BodyStream, Engine, ResponseHeadTooLarge, TransportSettings
from gateway.transport.body import HIGH_WATER
from gateway.transport.engine import READ_SIZE
from tests.support.upstream import (
    Action,
    Peer,
    ScriptedUpstream,
    close,
    forever,
    read,
    read_head,
    reply,
    reset,
    send,
    stall,
    wait_closed,
    wait_for,
)
from tests.transport.exchanges import fetch, request, whole

OK = b"HTTP/1.1 200 OK\r\n"


async def test_state_can_be_seen(engine: Engine) -> None:
    async with ScriptedUpstream([forever(read(), reply(b"hi"))]) as upstream:
        assert repr(engine) == "<Engine []>"

        responses = [await engine.handle_async_request(request(upstream.url, method="HEAD")) for _ in range(2)]
        assert repr(engine) == f"<Engine [{upstream.url}: 0 active, 0 idle, 0 waiting]>"

        await fetch(engine, request(upstream.url))
        pool = next(iter(engine.pools.values()))
        assert repr(engine) == f"<Engine [{upstream.url}: 0 active, 1 idle, 0 waiting]>"
        assert (pool.active, pool.idle, pool.waiting) == (0, 1, 0)
        assert [response.status_code for response in responses] == [200, 200]


async def test_a_connection_is_free_when_the_message_ends_and_not_when_the_reader_does(engine: Engine) -> None:
    async with ScriptedUpstream([forever(read(), reply(b"hi"))]) as upstream:
        first = await engine.handle_async_request(request(upstream.url))
        second = await engine.handle_async_request(request(upstream.url))

        assert upstream.accepted == 1
        assert second.extensions["reused"] is True
        assert [await whole(first), await whole(second)] == [b"hi", b"hi"]


async def test_the_last_connection_put_back_is_the_first_one_taken(engine: Engine) -> None:
    gate = asyncio.Event()
    held = [read(), wait_for(gate), reply(), forever(read(), reply())]
    async with ScriptedUpstream(held) as upstream, asyncio.TaskGroup() as tasks:
        for number in range(3):
            tasks.create_task(fetch(engine, request(f"{upstream.url}/{number}")))
        await upstream.wait_until(lambda: len(upstream.requests) == 3)
        gate.set()
        await upstream.wait_until(lambda: repr(engine).endswith("0 active, 3 idle, 0 waiting]>"))
        for _ in range(4):
            await fetch(engine, request(upstream.url))

        assert repr(engine).endswith("0 active, 3 idle, 0 waiting]>")


async def test_our_headers_say_who_and_how(engine: Engine) -> None:
    async with ScriptedUpstream([read(), reply()]) as upstream:
        await fetch(engine, httpx.Request("GET", upstream.url, headers={"accept-encoding": "gzip, br"}))

    names = [name for name, _ in upstream.requests[0].headers]
    assert names == ["host", "accept-encoding"]
    assert upstream.requests[0].header("accept-encoding") == "identity"


async def test_a_response_tells_when_it_was_sent_and_answered(engine: Engine) -> None:
    async with ScriptedUpstream([read(), reply()]) as upstream:
        response = await engine.handle_async_request(request(upstream.url))
        await whole(response)

    assert response.extensions["http_version"] == b"HTTP/1.1"
    assert response.extensions["sent_at"] <= response.extensions["first_byte_at"] <= asyncio.get_running_loop().time()


# A connection that the upstream closed while it was idle.


@pytest.mark.parametrize("end", [close, reset])
async def test_a_stale_connection_is_replaced_without_a_word(engine: Engine, end: Callable[[], Action]) -> None:
    once = [read(), reply(b"old"), read(), end()]
    async with ScriptedUpstream(once, [forever(read(), reply(b"new"))]) as upstream:
        await fetch(engine, request(upstream.url))
        response = await engine.handle_async_request(request(upstream.url, b"again"))

        assert await whole(response) == b"new"
        assert response.extensions["stale_retries"] == 1
        assert response.extensions["reused"] is False
        assert [received.body for received in upstream.requests] == [b"{}", b"again", b"again"]


async def test_one_stale_connection_is_replaced_by_a_new_one_and_not_by_another_that_may_be_stale() -> None:
    engine = Engine(TransportSettings(max_connections=2))
    gate = asyncio.Event()
    stale = [read(), wait_for(gate), reply(), read(), close()]
    async with ScriptedUpstream(stale, stale, [forever(read(), reply(b"new"))]) as upstream:
        gate.set()
        await asyncio.gather(fetch(engine, request(upstream.url)), fetch(engine, request(upstream.url)))

        assert await fetch(engine, request(upstream.url)) == (200, b"new")
        assert upstream.accepted == 3
    await engine.aclose()


async def test_a_call_that_the_upstream_may_have_worked_on_is_not_sent_again(engine: Engine) -> None:
    gate = asyncio.Event()
    async with ScriptedUpstream([read(), reply(), read(), wait_for(gate), close()], [read(), reply()]) as upstream:
        await fetch(engine, request(upstream.url))
        again = asyncio.ensure_future(fetch(engine, request(upstream.url)))
        await upstream.wait_until(lambda: len(upstream.requests) == 2)
        (pool,) = engine.pools.values()
        (connection,) = pool._open
        assert connection._stream is not None
        connection._stream.sent_at -= 1.0  # a second has passed
        gate.set()
        with pytest.raises(httpx.RemoteProtocolError):
            await again

        assert (len(upstream.requests), upstream.accepted) == (2, 1)


async def test_a_connection_that_fails_again_is_not_tried_a_third_time(engine: Engine) -> None:
    async with ScriptedUpstream([read(), reply(), read(), close()], [read(), close()]) as upstream:
        await fetch(engine, request(upstream.url))
        with pytest.raises(httpx.RemoteProtocolError):
            await fetch(engine, request(upstream.url))

        assert len(upstream.requests) == 3


async def test_nothing_is_sent_again_once_a_byte_of_the_response_came(engine: Engine) -> None:
    async with ScriptedUpstream([read(), reply(), read(), send(b"H"), close()]) as upstream:
        await fetch(engine, request(upstream.url))
        with pytest.raises(httpx.RemoteProtocolError):
            await fetch(engine, request(upstream.url))

        assert len(upstream.requests) == 2


async def test_nothing_is_sent_again_on_a_connection_that_was_new(engine: Engine) -> None:
    async with ScriptedUpstream([read(), close()]) as upstream:
        with pytest.raises(httpx.RemoteProtocolError):
            await fetch(engine, request(upstream.url))

        assert len(upstream.requests) == 1


async def test_a_body_that_can_be_read_only_once_is_not_sent_again(engine: Engine) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"once"

    async with ScriptedUpstream([read(), reply(), read(), close()]) as upstream:
        await fetch(engine, request(upstream.url))
        with pytest.raises(httpx.RemoteProtocolError):
            await fetch(engine, httpx.Request("POST", upstream.url, content=parts()))


# What the upstream must not do.

BAD = {
    "two lengths": OK + b"content-length: 2\r\ncontent-length: 2\r\n\r\nhi",
    "length and chunks": OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "chunks and length": OK + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "negative length": OK + b"content-length: -1\r\n\r\n",
    "folded header": OK + b"a: b\r\n c\r\ncontent-length: 0\r\n\r\n",
    "NUL in a header": OK + b"a: b\0c\r\ncontent-length: 0\r\n\r\n",
    "CR in a header": OK + b"a: b\rc\r\ncontent-length: 0\r\n\r\n",
    "LF in a header": OK + b"a: b\nc\r\ncontent-length: 0\r\n\r\n",
    "space before the colon": OK + b"a : b\r\ncontent-length: 0\r\n\r\n",
    "huge chunk": OK + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    "negative chunk": OK + b"transfer-encoding: chunked\r\n\r\n-1\r\n",
    "chunk longer than it said": OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhiya\r\n",
    "chunks of something else": OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "switching protocols": b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    "switching without saying to what": b"HTTP/1.1 101 Switching\r\n\r\n",
    "HTTP/2 by name": b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
    "HTTP/0.9 by name": b"HTTP/0.9 200 OK\r\ncontent-length: 0\r\n\r\n",
    "status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "status below 100": b"HTTP/1.1 099 OK\r\n\r\n",
    "seventeen informational": b"HTTP/1.1 103 Early\r\n\r\n" * 17 + OK + b"content-length: 0\r\n\r\n",
}


@pytest.mark.parametrize("fault", BAD)
async def test_a_malformed_response_is_refused(engine: Engine, fault: str) -> None:
    async with ScriptedUpstream([read(), send(BAD[fault]), wait_closed()]) as upstream:
        with pytest.raises(httpx.RemoteProtocolError):
            await fetch(engine, request(upstream.url))

        await upstream.wait_until(lambda: upstream.open_connections == 0)
        assert repr(engine) == f"<Engine [{upstream.url}: 0 active, 0 idle, 0 waiting]>"


async def test_sixteen_informational_responses_are_ignored(engine: Engine) -> None:
    early = b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" * 16
    async with ScriptedUpstream([read(), send(early, OK + b"x: y\r\ncontent-length: 2\r\n\r\nhi")]) as upstream:
        response = await engine.handle_async_request(request(upstream.url))

        assert response.headers.raw == [(b"x", b"y"), (b"content-length", b"2")]
        assert await whole(response) == b"hi"


TOO_LARGE = {
    "many fields": OK + b"a: b\r\n" * 101 + b"\r\n",
    "long field": OK + b"a: " + b"b" * 70_000 + b"\r\n\r\n",
    "many bytes": OK + (b"a: " + b"b" * 1000 + b"\r\n") * 70 + b"\r\n",
    "without end": OK + b"a: " + b"b" * 70_000,
    "long status": b"HTTP/1.1 200 " + b"K" * 70_000,
    "informational": (b"HTTP/1.1 103 Early\r\na: " + b"b" * 8000 + b"\r\n\r\n") * 9,
    "trailers": OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n" + (b"a: " + b"b" * 1000 + b"\r\n") * 200,
    "chunk extension": OK + b"transfer-encoding: chunked\r\n\r\n2;" + b"x" * 200_000,
}


@pytest.mark.parametrize("excess", TOO_LARGE)
async def test_a_head_without_measure_is_refused(engine: Engine, excess: str) -> None:
    async with ScriptedUpstream([read(), send(TOO_LARGE[excess]), wait_closed()]) as upstream:
        with pytest.raises(ResponseHeadTooLarge):
            await fetch(engine, request(upstream.url))


async def test_a_large_body_in_the_same_read_does_not_count_as_head(engine: Engine) -> None:
    head = b"a: " + b"b" * 900 + b"\r\n"
    raw = OK + head * 60 + b"content-length: 60000\r\n\r\n" + bytes(60_000)
    async with ScriptedUpstream([read(), send(raw)]) as upstream:
        assert await fetch(engine, request(upstream.url)) == (200, bytes(60_000))


@pytest.mark.parametrize(
    "tail", [b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad", b"H", b"garbage", b"\0" * 70_000, b"0\r\n\r\n"]
)
async def test_what_comes_after_a_message_meets_no_other_request(engine: Engine, tail: bytes) -> None:
    async with ScriptedUpstream([read(), send(OK + b"content-length: 2\r\n\r\nhi" + tail), wait_closed()]) as upstream:
        for _ in range(2):
            assert await fetch(engine, request(upstream.url)) == (200, b"hi")

        assert upstream.accepted == 2


async def test_what_comes_while_a_connection_is_idle_closes_it(engine: Engine) -> None:
    gate = asyncio.Event()
    async with ScriptedUpstream([read(), reply(), wait_for(gate), send(OK), wait_closed()]) as upstream:
        await fetch(engine, request(upstream.url))
        gate.set()
        await upstream.wait_until(lambda: upstream.open_connections == 0)

        assert repr(engine) == f"<Engine [{upstream.url}: 0 active, 0 idle, 0 waiting]>"


# Bodies that are not read, and bodies that are not sent.


async def test_an_answer_before_the_end_of_the_body_is_delivered_and_the_connection_discarded(engine: Engine) -> None:
    early = [read_head(), reply(b"too large", status="413 Content Too Large"), stall()]
    async with ScriptedUpstream(early) as upstream:
        assert await fetch(engine, request(upstream.url, bytes(32 << 20))) == (413, b"too large")

        assert repr(engine) == f"<Engine [{upstream.url}: 0 active, 0 idle, 0 waiting]>"


async def test_an_answer_before_the_end_of_a_streamed_body_ends_the_upload(engine: Engine) -> None:
    stopped = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(65536)
                await asyncio.sleep(0)
        finally:
            stopped.set()

    early = [read_head(), reply(b"no", status="413 Content Too Large"), stall()]
    async with ScriptedUpstream(early) as upstream:
        assert await fetch(engine, httpx.Request("POST", upstream.url, content=endless())) == (413, b"no")
        await stopped.wait()


@pytest.mark.parametrize("promised", ["3", "5"])
async def test_a_streamed_body_that_breaks_its_promise_is_our_own_fault(engine: Engine, promised: str) -> None:
    async def four() -> AsyncIterator[bytes]:
        yield b"four"

    sent = {"content-length": promised}
    async with ScriptedUpstream([read(), reply()]) as upstream:
        with pytest.raises(httpx.LocalProtocolError):
            await fetch(engine, httpx.Request("POST", upstream.url, content=four(), headers=sent))


async def test_a_failure_of_the_source_is_told_as_it_is(engine: Engine) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"one"
        raise ZeroDivisionError

    async with ScriptedUpstream([read(), reply()]) as upstream:
        with pytest.raises(ZeroDivisionError):
            await fetch(engine, httpx.Request("POST", upstream.url, content=failing()))

        assert repr(engine) == f"<Engine [{upstream.url}: 0 active, 0 idle, 0 waiting]>"


async def test_a_reader_that_does_not_read_stops_the_upstream(engine: Engine) -> None:
    size = 32 << 20
    sent = 0

    async def pour(peer: Peer) -> None:
        nonlocal sent
        peer.writer.write(OK + b"content-length: %d\r\n\r\n" % size)
        while sent < size:
            peer.writer.write(bytes(65536))
            await peer.writer.drain()
            sent += 65536

    async with ScriptedUpstream([read(), pour]) as upstream:
        response = await engine.handle_async_request(request(upstream.url))
        stream = response.stream
        assert isinstance(stream, BodyStream)
        level = -1
        while level != sent:  # until the kernel's buffers are full as well
            level = sent
            for _ in range(50):
                await asyncio.sleep(0)
        assert sent < size
        chunks = [len(chunk) async for chunk in stream]

    assert sum(chunks) == size
    assert max(chunks) <= HIGH_WATER + READ_SIZE == 256 * 1024


async def test_all_that_is_here_is_one_chunk(engine: Engine) -> None:
    gate = asyncio.Event()
    chunks = OK + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 1000
    async with ScriptedUpstream([read(), send(chunks), wait_for(gate), send(b"0\r\n\r\n")]) as upstream:
        response = await engine.handle_async_request(request(upstream.url))
        stream = aiter(response.stream)  # type: ignore[arg-type]

        assert await anext(stream) == b"a" * 1000
        gate.set()
        assert [chunk async for chunk in stream] == []


async def test_what_came_before_a_failure_can_be_read(engine: Engine) -> None:
    async with ScriptedUpstream([read(), send(OK + b"content-length: 9\r\n\r\nhello"), close()]) as upstream:
        response = await engine.handle_async_request(request(upstream.url))
        stream = aiter(response.stream)  # type: ignore[arg-type]

        assert await anext(stream) == b"hello"
        for _ in range(2):
            with pytest.raises(httpx.RemoteProtocolError):
                await anext(stream)


async def test_a_closed_stream_says_so(engine: Engine) -> None:
    async with ScriptedUpstream([read(), send(OK + b"content-length: 9\r\n\r\nhello"), wait_closed()]) as upstream:
        response = await engine.handle_async_request(request(upstream.url))
        stream = response.stream
        assert isinstance(stream, BodyStream)
        stream.close()

        with pytest.raises(httpx.StreamClosed):
            await anext(stream)
        assert repr(engine) == f"<Engine [{upstream.url}: 0 active, 0 idle, 0 waiting]>"


async def test_a_response_has_one_reader(engine: Engine) -> None:
    async with ScriptedUpstream([read(), send(OK + b"content-length: 9\r\n\r\n"), wait_closed()]) as upstream:
        response = await engine.handle_async_request(request(upstream.url))
        stream = response.stream
        assert isinstance(stream, BodyStream)

        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(anext(stream))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError):
                await anext(stream)
            first.cancel()


# The end.


async def test_a_closed_engine_fails_what_is_under_way_and_takes_nothing_more() -> None:
    engine = Engine(TransportSettings())
    async with ScriptedUpstream([read(), stall()]) as upstream, asyncio.TaskGroup() as tasks:
        pending = tasks.create_task(_failure(engine, request(upstream.url)))
        await upstream.wait_until(lambda: len(upstream.requests) == 1)
        await engine.aclose()

        assert isinstance(await pending, httpx.ReadError)
        assert isinstance(await _failure(engine, request(upstream.url)), RuntimeError)


async def _failure(engine: Engine, sent: httpx.Request) -> BaseException | None:
    try:
        await fetch(engine, sent)
    except (httpx.HTTPError, RuntimeError) as failure:
        return failure
    return None
