"""Each limit, shortened: what is said to a caller who goes over it, and that nobody else is touched by it."""

import asyncio
from typing import Any

import pytest

from gateway.errors import BodyTooLarge
from tests.socket.apps import Held, Receive, Scope, Send, deaf, echo, read, reply
from tests.socket.conftest import Start
from tests.support.client import rounds

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
MANY = b"".join(b"x-%d: 1\r\n" % number for number in range(100))
BIG_FIELD = b"x: " + b"y" * 33_000
TOO_MUCH = {
    "fields in number": (b"GET / HTTP/1.1\r\nHost: a\r\n" + MANY + b"\r\n", 431, "headers_too_large"),
    "fields in bytes": (b"GET / HTTP/1.1\r\nHost: a\r\n" + BIG_FIELD + b"\r\n\r\n", 431, "headers_too_large"),
    "a field without end": (b"GET / HTTP/1.1\r\nHost: a\r\n" + BIG_FIELD, 431, "headers_too_large"),
    "URL": (b"GET /" + b"x" * 8192 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "url_too_long"),
    "a URL without end": (b"GET /" + b"x" * 20_000, 414, "url_too_long"),
}


@pytest.mark.parametrize(("request_bytes", "status", "code"), TOO_MUCH.values(), ids=TOO_MUCH.keys())
@pytest.mark.parametrize("behind", [b"", GET + b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"])
async def test_a_head_that_is_too_much_is_refused(
    serve: Start, request_bytes: bytes, status: int, code: str, behind: bytes
) -> None:
    site = await serve(echo)
    async with await site.caller() as caller:
        # What shares a read with an earlier request is weighed when it is complete, or with the next read.
        await caller.send(
            *([behind + request_bytes] if request_bytes.endswith(b"\r\n\r\n") else [behind, request_bytes])
        )
        for _ in range(behind.count(b"HTTP")):
            assert (await caller.response()).status == 200
        response = await caller.response()
        assert (response.status, response.error["code"]) == (status, code)
        assert response.headers["connection"] == "close"
        assert await caller.closed()
    assert [error.status for error in site.refused] == [status]
    assert site.refused_ids == [response.headers["x-request-id"]]


@pytest.mark.parametrize("expects", [b"", b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\nConnection: upgrade\r\n"])
@pytest.mark.parametrize("behind", [b"", GET])
async def test_an_announced_body_that_is_too_much_is_the_applications_to_refuse(
    serve: Start, expects: bytes, behind: bytes
) -> None:
    raised: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await echo(scope, receive, send)
        except BodyTooLarge as error:
            raised.append(error)
            await reply(send, b"too much", 413)

    site = await serve(app)
    async with await site.caller() as caller:
        await caller.send(behind + POST[:-2] % (10 * 1024 * 1024 + 1) + expects + b"\r\n", b"x" * 100_000)
        if behind:
            assert (await caller.response()).status == 200
        response = await caller.response()
        assert (response.status, response.body) == (413, b"too much")
        assert response.headers["connection"] == "close"
        assert await caller.closed()
    assert len(raised) == 1
    assert site.refused == []
    assert site.state.total_requests == 1 + bool(behind)


async def test_an_announced_body_that_is_too_much_is_refused_for_an_application_that_does_not(serve: Start) -> None:
    site = await serve(echo)
    async with await site.caller() as caller:
        await caller.send(POST % (10 * 1024 * 1024 + 1))
        response = await caller.response()
        assert (response.status, response.error["code"]) == (413, "request_too_large")
        assert await caller.closed()


async def test_an_application_that_asks_for_no_body_does_not_mind_that_it_would_be_too_much(serve: Start) -> None:
    site = await serve(deaf)
    async with await site.caller() as caller:
        await caller.send(POST % (10 * 1024 * 1024 + 1))
        response = await caller.response()
        assert (response.status, response.headers["connection"]) == (200, "close")
        assert await caller.closed()


async def test_what_is_just_within_the_limits_is_served(serve: Start) -> None:
    site = await serve(echo, body_bytes=5)
    fields = MANY[: MANY.index(b"x-99")]
    async with await site.caller() as caller:
        await caller.send(b"GET /" + b"x" * 8191 + b" HTTP/1.1\r\nHost: a\r\n" + fields[9:] + b"\r\n")
        assert (await caller.response()).status == 200
        await caller.send(b"GET / HTTP/1.1\r\nHost: a\r\nx: " + b"y" * 32_000 + b"\r\n\r\n")
        assert (await caller.response()).status == 200
        await caller.send(POST % 5 + b"12345")
        assert (await caller.response()).status == 200


async def test_a_chunked_body_is_refused_where_it_passes_the_limit(serve: Start) -> None:
    site = await serve(echo, body_bytes=10)
    async with await site.caller() as caller:
        await caller.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        await caller.send(b"a\r\n0123456789\r\n", b"1\r\n")
        await rounds(5)
        assert len(site.state.tasks) == 1
        await caller.send(b"x")
        response = await caller.response()
        assert (response.status, response.error["code"]) == (413, "request_too_large")
        assert await caller.closed()
    assert site.refused == []


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_caller_in_the_middle_of_a_large_body_gets_its_413(serve: Start, *, chunked: bool) -> None:
    site = await serve(echo, body_bytes=1000)
    body = b"x" * 5_000_000
    framing = b"Transfer-Encoding: chunked\r\n\r\n4c4b40\r\n" if chunked else b"Content-Length: 5000000\r\n\r\n"
    async with await site.caller() as caller:
        await caller.send(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + body)
        assert (await caller.response()).status == 413
        assert await caller.closed()


async def test_an_answer_that_does_not_wait_for_the_body_reaches_the_caller(serve: Start) -> None:
    site = await serve(deaf)
    async with await site.caller() as caller:
        await caller.send(POST % 5_000_000 + b"x" * 5_000_000)
        response = await caller.response()
        assert (response.body, response.headers["connection"]) == (b"hello", "close")
        assert await caller.closed()


async def test_lingering_has_an_end_in_bytes(serve: Start) -> None:
    site = await serve(deaf, linger_bytes=100_000)
    async with await site.caller() as caller:
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            await caller.send(*[POST % 9_000_000, *[b"x" * 100_000] * 90])


async def test_lingering_has_an_end_in_time(serve: Start) -> None:
    site = await serve(deaf, linger_seconds=0.05)
    async with await site.caller() as caller:
        await caller.send(POST % 5)
        await caller.response()
        await site.quiet()


@pytest.mark.parametrize("sent", [b"", b"G", b"GET / HTTP/1.1\r\nHost: a\r\n", b"\r\n\r\n"])
async def test_a_head_that_does_not_come_is_a_408(serve: Start, sent: bytes) -> None:
    site = await serve(echo, head_seconds=0.05)
    async with await site.caller() as caller:
        await caller.send(sent)
        response = await caller.response()
        assert (response.status, response.error["code"]) == (408, "request_timeout")
        assert await caller.closed()
    assert [error.status for error in site.refused] == [408]


async def test_a_later_head_has_its_own_time(serve: Start) -> None:
    site = await serve(echo, head_seconds=0.05)
    async with await site.caller() as caller:
        await caller.send(GET)
        assert (await caller.response()).status == 200
        await caller.send(GET[:-1])
        assert (await caller.response()).status == 408
        assert await caller.closed()


async def test_a_head_half_read_behind_a_request_in_flight_has_its_time_after_the_answer(serve: Start) -> None:
    app = Held()
    site = await serve(app, head_seconds=0.05)
    async with await site.caller() as caller:
        await caller.send(GET + GET[:-1])
        await app.entered.wait()
        app.go.set()
        assert (await caller.response()).body == b"done"
        assert (await caller.response()).status == 408


async def test_an_idle_connection_is_closed_without_a_word(serve: Start) -> None:
    site = await serve(echo, idle_seconds=0.05)
    async with await site.caller() as caller:
        await caller.send(GET)
        assert (await caller.response()).status == 200
        assert await caller.closed()
    assert site.refused == []


@pytest.mark.parametrize(
    "limits",
    [{"body_seconds": 0.05}, {"body_grace_seconds": 0.05, "body_rate": 1e6}],
    ids=["the whole time", "the rate"],
)
@pytest.mark.parametrize("sent", [b"", b"x" * 100], ids=["nothing", "a part"])
async def test_a_body_that_comes_too_slowly_is_a_408(serve: Start, limits: dict[str, float], sent: bytes) -> None:
    site = await serve(echo, **limits)
    async with await site.caller() as caller:
        await caller.send(POST % 200, sent)
        response = await caller.response()
        assert (response.status, response.error["code"]) == (408, "request_timeout")
        assert response.headers["connection"] == "close"
        assert await caller.closed()
    assert site.refused == []


async def test_bytes_at_the_rate_buy_time(serve: Start) -> None:
    site = await serve(echo, body_grace_seconds=1.0, body_rate=1000.0)
    async with await site.caller() as caller:
        await caller.send(POST % 60_000, b"x" * 59_999)
        connection = await site.connection()
        assert connection._body_since is not None
        assert connection._read_by == pytest.approx(connection._body_since + 59.999)
        await caller.send(b"x")
        assert (await caller.response()).status == 200


async def test_the_clock_of_a_body_stands_still_while_the_application_does_not_take_it(serve: Start) -> None:
    app = Held(reads=False)
    site = await serve(app, body_seconds=0.05)
    async with await site.caller() as caller:
        await caller.send(POST % 100_001 + b"x" * 100_000)
        connection = await site.connection()
        while connection._paused_at is None:
            await asyncio.sleep(0)
        assert connection._read_by is None
        app.go.set()
        assert (await caller.response()).body == b"done"


async def test_a_stream_is_under_no_deadline(serve: Start) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(3):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            connection = await site.connection()
            seen.append((connection._read_by, connection._write_by))
        await send({"type": "http.response.body"})

    seen: list[Any] = []
    site = await serve(app)
    async with await site.caller() as caller:
        await caller.send(POST % 1 + b"x")
        assert (await caller.response()).body == b"xxx"
    assert seen == [(None, None)] * 3
