"""What is not a request that this server reads: 400, in OpenAI's shape, and nothing of it reaches the application."""

import pytest

from gateway.errors import CallerError
from tests.socket.apps import Held, Receive, Scope, Send, echo, read, reply
from tests.socket.conftest import Start

HEAD = b"POST /x HTTP/1.1\r\nHost: a\r\n"
BAD_HEADS = {
    "both framings": HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    "both framings, the other way": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
    "two lengths that differ": HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n",
    "a list of lengths": HEAD + b"Content-Length: 3, 3\r\n\r\n",
    "a signed length": HEAD + b"Content-Length: +3\r\n\r\n",
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "a length beyond 64 bits": HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n",
    "bare LF after the request line": b"GET / HTTP/1.1\nHost: a\r\n\r\n",
    "bare LF after a field": b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
    "obs-fold": HEAD + b"X: y\r\n z\r\n\r\n",
    "obs-fold at the first field": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "NUL in a value": HEAD + b"X: y\0z\r\n\r\n",
    "CR in a value": HEAD + b"X: y\rz\r\n\r\n",
    "a control character in a value": HEAD + b"X: y\x01z\r\n\r\n",
    "whitespace before the colon": HEAD + b"X : y\r\n\r\n",
    "a name with a space": HEAD + b"X y: z\r\n\r\n",
    "no name": HEAD + b": y\r\n\r\n",
    "no colon": HEAD + b"Xy\r\n\r\n",
    "a coding that is not spoken": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "chunked twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunked is not last": HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n",
    "chunked in HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two Authorizations": HEAD + b"Authorization: Bearer a\r\nAuthorization: Bearer a\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/0.9, said": b"GET / HTTP/0.9\r\nHost: a\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "HTTP/3.7": b"GET / HTTP/3.7\r\nHost: a\r\n\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00",
    "no HTTP at all": b"hello\r\n",
    "absolute form": b"GET http://a/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT": b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    "asterisk form": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "a fragment": b"GET /x#y HTTP/1.1\r\nHost: a\r\n\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "a byte beyond ASCII in the target": b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    "an escaped NUL in the path": b"GET /x%00 HTTP/1.1\r\nHost: a\r\n\r\n",
    "an escaped line end in the path": b"GET /x%0d%0ay HTTP/1.1\r\nHost: a\r\n\r\n",
    "an unknown method": b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
}
BAD_HOSTS = {
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "two Hosts in HTTP/1.0": b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n",
    "an empty Host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "a Host with a path": b"GET / HTTP/1.1\r\nHost: x/?y=\r\n\r\n",
    "a Host with a user": b"GET / HTTP/1.1\r\nHost: u@x\r\n\r\n",
    "a Host with a space": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "a Host with a word for a port": b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
}
BAD_CHUNKS = {
    "no number": b"zz\r\n",
    "a space after the size": b"3 \r\nabc\r\n",
    "bare LF": b"3\nabc\n",
    "more data than the size says": b"3\r\nabcd\r\n",
    "a size beyond 64 bits": b"FFFFFFFFFFFFFFFFF\r\n",
    "an extension without end": b"1;" + b"x" * 600_000,
}


@pytest.mark.parametrize("request_bytes", BAD_HEADS.values(), ids=BAD_HEADS.keys())
async def test_a_malformed_head_is_a_400_and_the_end(serve: Start, request_bytes: bytes) -> None:
    site = await serve(echo)
    async with await site.caller() as caller:
        await caller.send(request_bytes)
        response = await caller.response()
        assert response.status == 400
        assert response.headers["connection"] == "close"
        assert response.error["code"] == "malformed_request"
        assert await caller.closed()
    assert [error.status for error in site.refused] == [400]
    await site.quiet()
    assert site.state.total_requests == 0


@pytest.mark.parametrize("request_bytes", BAD_HOSTS.values(), ids=BAD_HOSTS.keys())
async def test_a_host_that_is_none_is_a_400_and_the_end(serve: Start, request_bytes: bytes) -> None:
    site = await serve(echo)
    async with await site.caller() as caller:
        await caller.send(request_bytes)
        response = await caller.response()
        assert (response.status, response.error["code"]) == (400, "invalid_host")
        assert await caller.closed()


@pytest.mark.parametrize("host", [b"a", b"A-b.c:80", b"127.0.0.1:8080", b"[::1]:8080", b"a_b"])
async def test_a_good_host_is_taken(serve: Start, host: bytes) -> None:
    site = await serve(echo)
    async with await site.caller() as caller:
        await caller.send(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        assert (await caller.response()).status == 200


async def test_a_host_is_judged_on_every_request(serve: Start) -> None:
    site = await serve(echo)
    async with await site.caller() as caller:
        await caller.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n")
        assert (await caller.response()).status == 200
        assert (await caller.response()).status == 400


@pytest.mark.parametrize("chunk", BAD_CHUNKS.values(), ids=BAD_CHUNKS.keys())
@pytest.mark.parametrize("whole", [True, False], ids=["at once", "after the head"])
async def test_a_malformed_chunk_is_raised_to_the_application(serve: Start, chunk: bytes, *, whole: bool) -> None:
    raised: list[Exception] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await read(receive)
        except Exception as error:
            raised.append(error)
            raise

    site = await serve(app)
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    async with await site.caller() as caller:
        await caller.send(*([head + chunk] if whole else [head, chunk]))
        response = await caller.response()
        assert (response.status, response.error["code"]) == (400, "malformed_request")
        assert response.headers["connection"] == "close"
        assert await caller.closed()
    assert len(raised) == 1
    assert site.refused == []


async def test_an_application_may_render_a_body_fault_itself(serve: Start) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await read(receive)
        except CallerError as error:
            await reply(send, type(error).__name__.encode(), 418)

    site = await serve(app)
    async with await site.caller() as caller:
        await caller.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
        response = await caller.response()
        assert (response.status, response.body) == (418, b"CallerError")
        assert response.headers["connection"] == "close"
        assert await caller.closed()


async def test_garbage_behind_a_good_request_is_refused_after_its_answer(serve: Start) -> None:
    app = Held()
    site = await serve(app)
    async with await site.caller() as caller:
        await caller.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGARBAGE\r\n\r\n")
        app.go.set()
        assert (await caller.response()).body == b"done"
        assert (await caller.response()).status == 400
        assert await caller.closed()
    assert app.departures == 0
