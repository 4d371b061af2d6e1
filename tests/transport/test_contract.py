"""What any transport under the gateway promises: ours, and httpx's own as the measure of what is usual."""

import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.support.upstream import (
    Script,
    ScriptedUpstream,
    blackhole,
    close,
    forever,
    read,
    read_head,
    reply,
    reset,
    send,
    stall,
    unused_port,
    wait_closed,
)
from tests.transport.exchanges import fetch, request, whole

OK = b"HTTP/1.1 200 OK\r\n"
EVENTS = b'data: {"a": "\xc3\xa9"}\n\ndata: [DONE]\n\n'
CORPUS = {
    "length": (OK + b"content-type: text/plain\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
    "chunked": (OK + b"transfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n", b"hello"),
    "trailers": (OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\nx-b: 2\r\n\r\n", b"hello"),
    "close-delimited": (OK + b"x-empty:\r\n\r\nhello", b"hello"),
    "events": (
        OK + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(EVENTS), EVENTS),
        EVENTS,
    ),
    "informational": (b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + OK + b"content-length: 2\r\n\r\nhi", b"hi"),
    "nothing": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 99\r\n\r\n", b""),
    "old": (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello"),
}


@pytest.mark.parametrize("name", CORPUS)
async def test_a_response_is_the_same_wherever_the_network_splits_it(
    transport: httpx.AsyncBaseTransport, name: str
) -> None:
    raw, body = CORPUS[name]
    scripts = [[read(), send(raw[:at], raw[at:]), close()] for at in range(1, len(raw))]

    async with ScriptedUpstream(*scripts) as upstream:
        for _ in scripts:
            sent = request(upstream.url)
            sent.headers["connection"] = "close"
            _, received = await fetch(transport, sent)

            assert received == body


async def test_what_is_asked_is_what_the_upstream_reads(transport: httpx.AsyncBaseTransport) -> None:
    async with ScriptedUpstream([read(), reply()]) as upstream:
        sent = httpx.Request("POST", f"{upstream.url}/v1/x?y=z%20", headers={"X-Name": "value"}, content=b"body")
        await fetch(transport, sent)

    received = upstream.requests[0]
    assert (received.method, received.path, received.body) == ("POST", "/v1/x?y=z%20", b"body")
    assert received.header("host") == upstream.url.removeprefix("http://")
    assert received.header("x-name") == "value"
    assert received.header("content-length") == "4"


async def test_status_and_headers_come_as_they_were_sent(transport: httpx.AsyncBaseTransport) -> None:
    answer = reply(b"{}", status="429 Slow Down", headers=["Retry-After: 2", "set-cookie: a=1", "set-cookie: b=2"])
    async with ScriptedUpstream([read(), answer]) as upstream:
        response = await transport.handle_async_request(request(upstream.url))
        await whole(response)

    assert response.status_code == 429
    assert response.headers["retry-after"] == "2"
    assert response.headers.get_list("set-cookie") == ["a=1", "b=2"]


async def test_an_answer_to_head_has_no_body(transport: httpx.AsyncBaseTransport) -> None:
    async with ScriptedUpstream([read(), send(OK + b"content-length: 5\r\n\r\n")]) as upstream:
        assert await fetch(transport, request(upstream.url, None, method="HEAD")) == (200, b"")


async def test_a_streamed_body_is_sent_in_chunks(transport: httpx.AsyncBaseTransport) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"one "
        yield b""
        yield b"two"

    async with ScriptedUpstream([forever(read(), reply())]) as upstream:
        await fetch(transport, httpx.Request("POST", upstream.url, content=parts()))
        sized = httpx.Request("POST", upstream.url, content=parts(), headers={"content-length": "7"})
        await fetch(transport, sized)

    assert [received.body for received in upstream.requests] == [b"one two", b"one two"]
    assert upstream.requests[0].header("transfer-encoding") == "chunked"
    assert upstream.requests[1].header("transfer-encoding") is None
    assert upstream.accepted == 1


async def test_a_large_body_arrives_whole(transport: httpx.AsyncBaseTransport) -> None:
    body = bytes(range(256)) * 8192
    async with ScriptedUpstream([read(), reply(body)]) as upstream:
        assert await fetch(transport, request(upstream.url, body)) == (200, body)

    assert upstream.requests[0].body == body


async def test_a_connection_is_used_again(transport: httpx.AsyncBaseTransport) -> None:
    async with ScriptedUpstream([forever(read(), reply())]) as upstream:
        for _ in range(5):
            await fetch(transport, request(upstream.url))

        assert upstream.accepted == 1


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(OK + b"connection: close\r\ncontent-length: 2\r\n\r\nhi", id="said to close"),
        pytest.param(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", id="HTTP/1.0"),
    ],
)
async def test_a_connection_that_can_not_be_trusted_is_not_used_again(
    transport: httpx.AsyncBaseTransport, raw: bytes
) -> None:
    async with ScriptedUpstream([read(), send(raw), wait_closed()]) as upstream:
        for _ in range(2):
            assert await fetch(transport, request(upstream.url)) == (200, b"hi")

        assert upstream.accepted == 2


async def test_a_response_given_up_early_closes_its_connection(transport: httpx.AsyncBaseTransport) -> None:
    async with ScriptedUpstream([read(), send(OK + b"content-length: 99\r\n\r\nhi"), wait_closed()]) as upstream:
        response = await transport.handle_async_request(request(upstream.url))
        await response.aclose()
        await response.aclose()

        await upstream.wait_until(lambda: upstream.open_connections == 0)


CUT = httpx.RemoteProtocolError, httpx.ReadError
EXCEPTIONS: dict[str, tuple[Script, dict[str, float], type[Exception] | tuple[type[Exception], ...]]] = {
    "closed without a word": ([read(), close()], {}, CUT),
    "reset without a word": ([read(), reset()], {}, CUT),
    "closed at once": ([close()], {}, (*CUT, httpx.WriteError)),
    "reset at once": ([reset()], {}, (*CUT, httpx.WriteError)),
    "closed within the head": ([read(), send(OK + b"x: "), close()], {}, CUT),
    "body too short": ([read(), send(OK + b"content-length: 9\r\n\r\nhi"), close()], {}, CUT),
    "reset within the body": ([read(), send(OK + b"content-length: 9\r\n\r\nhi"), reset()], {}, CUT),
    "chunks cut off": ([read(), send(OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n"), close()], {}, CUT),
    "not HTTP": ([read(), send(b"SSH-2.0-OpenSSH\r\n\r\n"), wait_closed()], {}, httpx.RemoteProtocolError),
    "bad chunk": (
        [read(), send(OK + b"transfer-encoding: chunked\r\n\r\nzz\r\nhi\r\n"), wait_closed()],
        {},
        httpx.RemoteProtocolError,
    ),
    "silent": ([read(), stall()], {"read": 0.03}, httpx.ReadTimeout),
    "silent within the head": ([read(), send(OK), stall()], {"read": 0.03}, httpx.ReadTimeout),
    "silent within the body": (
        [read(), send(OK + b"content-length: 9\r\n\r\nhi"), stall()],
        {"read": 0.03},
        httpx.ReadTimeout,
    ),
    "does not read": ([read_head(), stall()], {"write": 0.03}, httpx.WriteTimeout),
}


@pytest.mark.parametrize("fault", EXCEPTIONS)
async def test_a_fault_has_its_exception(transport: httpx.AsyncBaseTransport, fault: str) -> None:
    script, timeouts, exceptions = EXCEPTIONS[fault]
    body = bytes(32 << 20) if fault == "does not read" else b"{}"
    async with ScriptedUpstream(script) as upstream:
        with pytest.raises(exceptions) as raised:
            await fetch(transport, request(upstream.url, body, timeouts))

        assert not isinstance(raised.value, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)


async def test_a_refused_connection_is_a_connect_error(transport: httpx.AsyncBaseTransport) -> None:
    with pytest.raises(httpx.ConnectError):
        await fetch(transport, request(f"http://127.0.0.1:{unused_port()}"))


async def test_a_name_that_does_not_resolve_is_a_connect_error(transport: httpx.AsyncBaseTransport) -> None:
    with pytest.raises(httpx.ConnectError):
        await fetch(transport, request("http://no-such-host.invalid"))


async def test_a_connection_that_is_never_made_is_a_connect_timeout(transport: httpx.AsyncBaseTransport) -> None:
    with blackhole() as url, pytest.raises(httpx.ConnectTimeout):
        await fetch(transport, request(url, timeouts={"connect": 0.03}))


async def test_a_url_without_http_is_refused(transport: httpx.AsyncBaseTransport) -> None:
    with contextlib.suppress(httpx.UnsupportedProtocol):
        await fetch(transport, request("ftp://127.0.0.1/"))
        pytest.fail("it was sent")
