"""What a well-behaved caller may send, in every way in which the network may cut it up."""

import asyncio

import orjson
import pytest

from tests.socket.apps import Held, Receive, Scope, Send, deaf, echo, mirror, read, reply
from tests.socket.conftest import Start

POST = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 11\r\n\r\nhello world"
CHUNKED = (
    b"POST /v1/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nAuthorization: nobody\r\n\r\n"
)
GET = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("request_bytes", [POST, CHUNKED], ids=["content-length", "chunked"])
async def test_a_request_cut_anywhere_is_the_same_request(serve: Start, request_bytes: bytes) -> None:
    site = await serve(echo)
    async with await site.caller() as caller:
        for at in range(1, len(request_bytes)):
            await caller.send(request_bytes[:at], request_bytes[at:])
            assert (await caller.response()).body == b"POST /v1/x hello world"
    assert site.state.total_requests == len(request_bytes) - 1


async def test_a_request_may_come_byte_by_byte(serve: Start) -> None:
    site = await serve(echo)
    async with await site.caller() as caller:
        await caller.send(*(CHUNKED[at : at + 1] for at in range(len(CHUNKED))))
        assert (await caller.response()).body == b"POST /v1/x hello world"


async def test_trailers_do_not_become_headers(serve: Start) -> None:
    seen: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read(receive)
        seen.extend(name for name, _ in scope["headers"])
        await reply(send, b"")

    site = await serve(app)
    async with await site.caller() as caller:
        await caller.send(CHUNKED, CHUNKED)
        await caller.response()
        await caller.response()
    assert seen == [b"host", b"transfer-encoding"] * 2


async def test_the_scope_is_what_asgi_says(serve: Start) -> None:
    site = await serve(mirror)
    async with await site.caller() as caller:
        await caller.send(b"PUT /a%20b/%C3%A9?q=%20 HTTP/1.1\r\nHost: a\r\nX-Two: 1 \t\r\nx-two:2\r\n\r\n")
        scope = orjson.loads((await caller.response()).body)
        mine = list(caller.sock.getsockname())
    assert scope.pop("client") == mine
    assert scope.pop("server") == ["127.0.0.1", site.port]
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "PUT",
        "scheme": "http",
        "root_path": "",
        "path": "/a b/é",
        "raw_path": "/a%20b/%C3%A9",
        "query_string": "q=%20",
        "headers": [["host", "a"], ["x-two", "1"], ["x-two", "2"]],
        "state": {},
    }


async def test_pipelined_requests_are_answered_in_order(serve: Start) -> None:
    site = await serve(echo)
    async with await site.caller() as caller:
        await caller.send(b"".join(GET % number for number in range(5)) + POST)
        for number in range(5):
            assert (await caller.response()).body == b"GET /%d " % number
        assert (await caller.response()).body == b"POST /v1/x hello world"


async def test_pipelining_beyond_the_limit_ends_after_the_last_answer_that_was_due(serve: Start) -> None:
    site = await serve(echo, pipelined=3)
    async with await site.caller() as caller:
        await caller.send(b"".join(GET % number for number in range(9)))
        connections = []
        for number in range(4):
            response = await caller.response()
            assert response.body == b"GET /%d " % number
            connections.append(response.headers.get("connection"))
        assert connections == [None, None, None, "close"]
        assert await caller.closed()


async def test_requests_that_come_while_many_wait_stay_in_the_socket_until_there_is_room(serve: Start) -> None:
    app = Held()
    site = await serve(app, pipelined=2)
    async with await site.caller() as caller:
        await caller.send(*(GET % number for number in range(4)))
        app.go.set()
        for _ in range(4):
            assert (await caller.response()).body == b"done"


async def test_an_expected_100_is_sent_when_the_application_asks_for_the_body(serve: Start) -> None:
    site = await serve(echo)
    async with await site.caller() as caller:
        for _ in range(2):
            await caller.send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
            assert (await caller.response()).status == 100
            await caller.send(b"ok")
            assert (await caller.response()).body == b"POST / ok"


async def test_no_100_is_sent_where_the_application_answers_first(serve: Start) -> None:
    site = await serve(deaf)
    async with await site.caller() as caller:
        await caller.send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        response = await caller.response()
        assert (response.status, response.headers["connection"]) == (200, "close")
        assert await caller.closed()


async def test_no_100_is_sent_where_the_body_is_already_here(serve: Start) -> None:
    site = await serve(echo)
    async with await site.caller() as caller:
        await caller.send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok")
        assert (await caller.response()).status == 200


@pytest.mark.parametrize("offer", [b"h2c", b"websocket"])
@pytest.mark.parametrize("rest", [POST, CHUNKED], ids=["content-length", "chunked"])
async def test_an_offer_to_upgrade_is_ignored_and_the_request_is_served(
    serve: Start, offer: bytes, rest: bytes
) -> None:
    site = await serve(echo)
    request = rest.replace(b"Host: a\r\n", b"Host: a\r\nConnection: Upgrade\r\nUpgrade: " + offer + b"\r\n")
    async with await site.caller() as caller:
        for at in (1, request.index(b"\r\n\r\n") + 2, request.index(b"\r\n\r\n") + 4, len(request) - 1):
            await caller.send(request[:at], request[at:])
            assert (await caller.response()).body == b"POST /v1/x hello world"
        await caller.send(b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n" + POST)
        assert (await caller.response()).body == b"GET /a "
        assert (await caller.response()).body == b"POST /v1/x hello world"


async def test_a_large_body_arrives_whole_though_the_application_is_slow_to_take_it(serve: Start) -> None:
    body = bytes(range(256)) * 4096 * 3
    started = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await started.wait()
        assert await read(receive) == body
        await reply(send, b"whole")

    site = await serve(app, body_seconds=5)
    async with await site.caller() as caller:
        sending = asyncio.ensure_future(
            caller.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body), body)
        )
        connection = await site.connection()
        while connection._paused_at is None:
            await asyncio.sleep(0)
        started.set()
        await sending
        assert (await caller.response()).body == b"whole"


async def test_http_1_0_is_served_and_closed(serve: Start) -> None:
    site = await serve(echo)
    async with await site.caller() as caller:
        await caller.send(b"GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        response = await caller.response()
        assert (response.body, response.headers["connection"]) == (b"GET /old ", "close")
        assert await caller.closed()


async def test_a_caller_that_asks_for_it_is_closed_and_what_it_sends_then_is_ignored(serve: Start) -> None:
    site = await serve(echo)
    async with await site.caller() as caller:
        await caller.send(b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /b HTTP/1.1\r\n")
        response = await caller.response()
        assert (response.body, response.headers["connection"]) == (b"GET /a ", "close")
        assert await caller.closed()
    assert site.refused == []
