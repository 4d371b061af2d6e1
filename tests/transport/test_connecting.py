"""Names, addresses and the order in which they are tried."""

import asyncio
import socket
from typing import Any

import httpx
import pytest

from gateway.transport import Engine, PreparedRequest, ResolveError, Target, TransportSettings
from tests.support.upstream import ScriptedUpstream, blackhole, forever, read, reply, unused_port
from tests.transport.exchanges import descriptors, fetch, request

Answers = list[tuple[socket.AddressFamily, str, int]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Answers]:
    """What the resolver knows; any other name it does not."""
    known: dict[str, Answers] = {}

    def lookup(host: str, _port: int, *_: Any) -> list[Any]:
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for family, address, port in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return known


def four(port: int) -> tuple[socket.AddressFamily, str, int]:
    return socket.AF_INET, "127.0.0.1", port


async def test_a_name_without_an_address_is_a_resolve_error(engine: Engine, names: dict[str, Answers]) -> None:
    with pytest.raises(ResolveError):
        await fetch(engine, request("http://upstream.test"))

    assert repr(engine) == "<Engine [http://upstream.test:80: 0 active, 0 idle, 0 waiting]>"


async def test_an_address_that_refuses_gives_way_to_the_next(engine: Engine, names: dict[str, Answers]) -> None:
    async with ScriptedUpstream([read(), reply()]) as upstream:
        names["upstream.test"] = [four(unused_port()), four(unused_port()), four(upstream.port)]

        assert await fetch(engine, request("http://upstream.test")) == (200, b"{}")


async def test_an_address_that_is_silent_does_not_hold_up_the_next(engine: Engine, names: dict[str, Answers]) -> None:
    async with ScriptedUpstream([read(), reply()]) as upstream:
        with blackhole() as url:
            names["upstream.test"] = [four(httpx.URL(url).port or 0), four(upstream.port)]
            before = descriptors()

            assert await fetch(engine, request("http://upstream.test")) == (200, b"{}")
            await asyncio.sleep(0)
            assert descriptors() <= before + 2  # the one connection has two ends


async def test_when_every_address_refuses_it_is_a_connect_error(engine: Engine, names: dict[str, Answers]) -> None:
    names["upstream.test"] = [four(unused_port()), four(unused_port())]

    with pytest.raises(httpx.ConnectError, match="refused"):
        await fetch(engine, request("http://upstream.test"))


async def test_leaving_during_the_race_leaves_no_socket(engine: Engine, names: dict[str, Answers]) -> None:
    with blackhole() as one, blackhole() as other:
        names["upstream.test"] = [four(httpx.URL(url).port or 0) for url in (one, other)]
        before = descriptors(), len(asyncio.all_tasks())
        with pytest.raises(httpx.ConnectTimeout):
            await fetch(engine, request("http://upstream.test", timeouts={"connect": 0.3}))
        for _ in range(5):
            await asyncio.sleep(0)

        assert (descriptors(), len(asyncio.all_tasks())) == before


def to(url: str, address: str) -> PreparedRequest:
    return PreparedRequest(Target("POST", httpx.URL(url), address=address), [], b"{}", {"timeout": {"connect": 10.0}})


async def test_an_address_of_ones_own_is_connected_to_and_the_name_is_not_looked_up(
    engine: Engine, names: dict[str, Answers]
) -> None:
    async with ScriptedUpstream([forever(read(), reply())]) as upstream:
        url = f"http://upstream.test:{upstream.port}"
        for _ in range(2):
            assert await fetch(engine, to(f"{url}/v1", "127.0.0.1")) == (200, b"{}")

        assert upstream.accepted == 1
        assert repr(engine) == f"<Engine [{url} at 127.0.0.1: 0 active, 1 idle, 0 waiting]>"
    assert [received.header("host") for received in upstream.requests] == [f"upstream.test:{upstream.port}"] * 2


async def test_addresses_of_one_name_do_not_share_connections(engine: Engine, names: dict[str, Answers]) -> None:
    async with ScriptedUpstream([forever(read(), reply())], host="0.0.0.0") as upstream:
        url = f"http://upstream.test:{upstream.port}"
        names["upstream.test"] = [four(upstream.port)]
        for _ in range(2):
            await fetch(engine, to(url, "127.0.0.1"))
            await fetch(engine, to(url, "127.0.0.2"))
            await fetch(engine, request(url))

        assert upstream.accepted == 3
        assert list(map(str, engine.pools)) == [f"{url} at 127.0.0.1", f"{url} at 127.0.0.2", url]


async def test_an_address_that_refuses_is_not_replaced_by_another_of_its_name(
    engine: Engine, names: dict[str, Answers]
) -> None:
    async with ScriptedUpstream([read(), reply()]) as upstream:
        names["upstream.test"] = [four(upstream.port)]
        with pytest.raises(httpx.ConnectError, match="refused"):
            await fetch(engine, to(f"http://upstream.test:{upstream.port}", "127.0.0.2"))

        assert upstream.accepted == 0


async def test_an_address_may_be_ipv6(engine: Engine, names: dict[str, Answers]) -> None:
    try:
        upstream = await ScriptedUpstream([read(), reply()], host="::1").__aenter__()
    except OSError:
        pytest.skip("no IPv6 here")
    async with engine:
        assert await fetch(engine, to(f"http://upstream.test:{upstream.port}", "::1")) == (200, b"{}")
    assert upstream.requests[0].header("host") == f"upstream.test:{upstream.port}"
    await upstream.__aexit__(None, None, None)


async def test_ipv6_is_spoken_where_it_is_available(engine: Engine) -> None:
    try:
        upstream = await ScriptedUpstream([forever(read(), reply())], host="::1").__aenter__()
    except OSError:
        pytest.skip("no IPv6 here")
    async with engine:
        assert await fetch(engine, request(upstream.url)) == (200, b"{}")
        assert repr(engine) == f"<Engine [{upstream.url}: 0 active, 1 idle, 0 waiting]>"
    assert upstream.requests[0].header("host") == upstream.url.removeprefix("http://")
    await upstream.__aexit__(None, None, None)


async def test_localhost_is_found_on_the_family_that_listens(engine: Engine) -> None:
    async with ScriptedUpstream([read(), reply()]) as upstream:
        assert await fetch(engine, request(upstream.url.replace("127.0.0.1", "localhost"))) == (200, b"{}")


async def test_what_is_sent_is_not_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[tuple[int, int]] = []

    class Watched(socket.socket):
        def setsockopt(self, level: int, option: int, *value: Any) -> None:
            options.append((level, option))
            super().setsockopt(level, option, *value)

    engine = Engine(TransportSettings())
    async with ScriptedUpstream([read(), reply()]) as upstream:
        monkeypatch.setattr(socket, "socket", Watched)
        await fetch(engine, request(upstream.url))
    await engine.aclose()

    assert (socket.IPPROTO_TCP, socket.TCP_NODELAY) in options
