"""A prepared request is an httpx.Request to whoever asks, and ready-made bytes to the engine."""

import httpx
import pytest
import respx

from gateway.transport import Engine, PreparedRequest, Target
from tests.support.upstream import ScriptedUpstream, read, reply
from tests.transport.exchanges import fetch

KEY = "Bearer secret"


def prepared(url: str, body: bytes = b'{"a":1}', method: str = "POST") -> PreparedRequest:
    headers = [(b"authorization", KEY.encode()), (b"content-type", b"application/json")]
    return PreparedRequest(Target(method, httpx.URL(url), headers), [(b"x-request-id", b"7")], body, {})


async def test_it_reads_like_any_other_request() -> None:
    request = prepared("http://upstream.test:8000/v1/chat?x=1")

    assert (request.method, request.url.path) == ("POST", "/v1/chat")
    assert request.read() == await request.aread() == request.content == b'{"a":1}'
    assert b"".join(request.stream) == b'{"a":1}'
    assert dict(request.headers) == {
        "host": "upstream.test:8000",
        "accept-encoding": "identity",
        "authorization": KEY,
        "content-type": "application/json",
        "x-request-id": "7",
        "content-length": "7",
    }


async def test_what_is_sent_is_what_its_headers_say(engine: Engine) -> None:
    async with ScriptedUpstream([read(), reply()]) as upstream:
        request = prepared(f"{upstream.url}/v1/chat?x=1")
        await fetch(engine, request)

    received = upstream.requests[0]
    assert (received.method, received.path, received.body) == ("POST", "/v1/chat?x=1", b'{"a":1}')
    assert received.headers == list(request.headers.items())


async def test_an_ordinary_request_sends_the_same(engine: Engine) -> None:
    async with ScriptedUpstream([read(), reply(), read(), reply()]) as upstream:
        first = prepared(f"{upstream.url}/v1/chat")
        await fetch(engine, first)
        await fetch(engine, httpx.Request("POST", first.url, headers=first.headers.raw, content=first.content))

    assert upstream.requests[0] == upstream.requests[1]


@pytest.mark.parametrize(("method", "length"), [("GET", None), ("DELETE", None), ("POST", "0"), ("PUT", "0")])
async def test_a_request_without_a_body_says_so_where_one_is_expected(
    engine: Engine, method: str, length: str | None
) -> None:
    async with ScriptedUpstream([read(), reply(), read(), reply()]) as upstream:
        await fetch(engine, prepared(upstream.url, b"", method))
        await fetch(engine, httpx.Request(method, upstream.url))

    assert [received.header("content-length") for received in upstream.requests] == [length, length]


async def test_httpx_sends_it_too() -> None:
    async with ScriptedUpstream([read(), reply()]) as upstream, httpx.AsyncHTTPTransport() as transport:
        await fetch(transport, prepared(upstream.url))

    assert upstream.requests[0].body == b'{"a":1}'
    assert upstream.requests[0].header("authorization") == KEY


async def test_respx_understands_it() -> None:
    router = respx.Router()
    route = router.post("http://upstream.test/v1/chat", headers={"x-request-id": "7"}, json={"a": 1})
    route.respond(json={"ok": True})

    status, body = await fetch(httpx.MockTransport(router.async_handler), prepared("http://upstream.test/v1/chat"))

    assert (status, body) == (200, b'{"ok":true}')
    assert route.calls.last.request.headers["authorization"] == KEY


def test_neither_target_nor_request_shows_its_key() -> None:
    request = prepared("http://upstream.test/")

    assert "secret" not in repr(request) + repr(request.target)


@pytest.mark.parametrize("value", [b"a\r\nx: y", b"a\nx", b"a\rx", b"a\0"])
def test_a_header_can_not_smuggle_another(value: bytes) -> None:
    url = httpx.URL("http://upstream.test/")
    with pytest.raises(httpx.LocalProtocolError):
        Target("POST", url, [(b"x", value)])
    with pytest.raises(httpx.LocalProtocolError):
        PreparedRequest(Target("POST", url), [(b"x", value)], b"", {}).head()


@pytest.mark.parametrize(("method", "headers"), [("GET /", []), ("", []), ("GET", [(b"a b", b"c")])])
def test_a_target_is_made_of_tokens(method: str, headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        Target(method, httpx.URL("http://upstream.test/"), headers)


@pytest.mark.parametrize("url", ["/v1/chat", "ftp://upstream.test/", "http:///v1"])
def test_a_target_is_somewhere_on_the_web(url: str) -> None:
    with pytest.raises(httpx.UnsupportedProtocol):
        Target("POST", httpx.URL(url))


@pytest.mark.parametrize("address", ["", "upstream.test", "10.0.0.3:8000", "[::1]", "10.0.0.256"])
def test_an_address_is_an_ip_address(address: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 address"):
        Target("POST", httpx.URL("http://upstream.test/"), address=address)


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        (None, "http://upstream.test:80"),
        ("10.0.0.3", "http://upstream.test:80 at 10.0.0.3"),
        ("FD00:0::3", "http://upstream.test:80 at fd00::3"),
    ],
)
def test_what_is_pooled_by_is_the_name_and_the_address(address: str | None, origin: str) -> None:
    target = Target("POST", httpx.URL("http://upstream.test/"), address=address)

    assert str(target.origin) == origin
    assert target.origin == Target("GET", httpx.URL("http://upstream.test:80/x"), address=address).origin
    assert dict(target.fields)[b"host"] == b"upstream.test"


async def test_a_host_of_ones_own_is_sent_once(engine: Engine) -> None:
    async with ScriptedUpstream([read(), reply()]) as upstream:
        target = Target("POST", httpx.URL(upstream.url), [(b"Host", b"elsewhere.test")])
        await fetch(engine, PreparedRequest(target, [], b"", {}))

    assert [value for name, value in upstream.requests[0].headers if name == "host"] == ["elsewhere.test"]
