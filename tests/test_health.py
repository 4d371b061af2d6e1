"""Health checks: who answers is well, whatever the answer, and nobody is asked for a completion."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import structlog
from structlog.testing import LogCapture

from gateway.admission import ConcurrencySettings
from gateway.dialects import DIALECTS
from gateway.fleet import Endpoint, Replica, Rules, Timeouts, Upstream
from gateway.health import LARGEST_ANSWER, HealthChecks, HealthSettings
from gateway.policy.balance import LeastLoad
from gateway.policy.breaker import Breaker, BreakerSettings
from gateway.policy.retry import RetrySettings
from gateway.tasks import spawn
from gateway.transport import Engine, TransportSettings, open_transport
from tests.support.clock import virtual_time
from tests.support.upstream import (
    Script,
    ScriptedUpstream,
    blackhole,
    close,
    forever,
    read,
    reply,
    reset,
    send,
    stall,
    unused_port,
    wait_closed,
    wait_for,
)
from tests.transport.exchanges import fetch, request

anyio_backend = virtual_time

OK = b"HTTP/1.1 200 OK\r\n"
WELL: Script = [forever(read(), reply())]
ILL: Script = [forever(read(), reply(status="503 Service Unavailable"))]


class Scene:
    """An upstream with a replica at each URL, the checks of it, and a sleep between rounds that the test ends."""

    def __init__(
        self,
        *urls: str,
        transport: httpx.AsyncBaseTransport | None = None,
        settings: HealthSettings | None = None,
        chance: float = 0.5,
    ) -> None:
        self.waits: list[float] = []
        self._log = LogCapture()
        self._asleep, self._next = asyncio.Event(), asyncio.Event()
        breaker = Breaker(BreakerSettings(), lambda: 0.5)
        rules = Rules(Timeouts(), RetrySettings(), ConcurrencySettings(), LeastLoad(), breaker)
        replicas = [self.make(url) for url in urls]
        self.upstream = Upstream("up", DIALECTS["openai"](), replicas, transport or Engine(), rules)
        self.checks = HealthChecks(
            self.upstream,
            lambda replica: replica.endpoint.health(None),
            settings or HealthSettings(),
            sleep=self._sleep,
            chance=lambda: chance,
            logger=structlog.wrap_logger(
                None, processors=[self._log], wrapper_class=structlog.make_filtering_bound_logger(20)
            ),
        )

    def make(self, url: str) -> Replica:
        endpoint = Endpoint(f"{url}/v1", DIALECTS["openai"](), [("authorization", "Bearer sk-up")])
        return Replica(endpoint, Breaker(BreakerSettings(), lambda: 0.5), lambda: 0.0, 30.0)

    @property
    def replica(self) -> Replica:
        (only,) = self.upstream.replicas
        return only

    @property
    def events(self) -> list[dict[str, Any]]:
        return [dict(entry) for entry in self._log.entries]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the checks; inside, the first round is over."""
        task = spawn(self.checks.run(), name="health")
        try:
            await self._asleep.wait()
            yield
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

    async def round(self) -> None:
        """Let the sleep end, and wait until the next one begins."""
        self._asleep.clear()
        self._next.set()
        await self._asleep.wait()

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self._next.clear()
        self._asleep.set()
        await self._next.wait()


async def test_a_check_is_a_get_with_the_upstreams_key_and_without_a_body() -> None:
    async with ScriptedUpstream(WELL) as upstream:
        scene = Scene(upstream.url)
        assert await scene.checks.check(scene.replica)
        await scene.upstream.aclose()

    (asked,) = upstream.requests
    assert (asked.method, asked.path, asked.body) == ("GET", "/v1/models", b"")
    assert asked.header("authorization") == "Bearer sk-up"
    assert asked.header("content-length") is None
    assert asked.header("transfer-encoding") is None


@pytest.mark.parametrize("kind", ["own", "httpx"])
@pytest.mark.parametrize(
    "status", ["200 OK", "204 No Content", "302 Found", "401 Unauthorized", "404 Not Found", "429 Too Many Requests"]
)
async def test_whoever_answers_is_well(status: str, kind: str) -> None:
    script = [forever(read(), reply(b"" if status.startswith("204") else b"{}", status=status))]
    async with ScriptedUpstream(script) as upstream:
        transport = open_transport(TransportSettings(engine=kind))  # type: ignore[arg-type]
        scene = Scene(upstream.url, transport=transport, settings=HealthSettings(failures=1))
        for _ in range(3):
            assert await scene.checks.check(scene.replica)
        await scene.upstream.aclose()

    assert upstream.accepted == 1
    assert scene.replica.healthy
    assert scene.events == []


FAULTS: dict[str, tuple[Script, str]] = {
    "500": ([read(), reply(status="500 Internal Server Error")], "500"),
    "503": ([read(), reply(status="503 Service Unavailable", headers=["retry-after: 1"])], "503"),
    "silent": ([read(), stall()], "TimeoutError"),
    "silent within the head": ([read(), send(OK), stall()], "TimeoutError"),
    "silent within the body": ([read(), send(OK + b"content-length: 9\r\n\r\nhi"), stall()], "TimeoutError"),
    "closes": ([read(), close()], "RemoteProtocolError"),
    "resets within the body": ([read(), send(OK + b"content-length: 9\r\n\r\nhi"), reset()], "ReadError"),
    "not HTTP": ([read(), send(b"SSH-2.0-OpenSSH\r\n\r\n"), wait_closed()], "RemoteProtocolError"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_who_fails_or_does_not_answer_in_time_is_not_well(fault: str) -> None:
    script, reason = FAULTS[fault]
    async with ScriptedUpstream(script) as upstream:
        scene = Scene(upstream.url, settings=HealthSettings(failures=1))
        assert not await scene.checks.check(scene.replica)
        await scene.upstream.aclose()

    assert not scene.replica.healthy
    assert scene.events == [
        {
            "event": "replica_unhealthy",
            "log_level": "warning",
            "upstream": "up",
            "replica": scene.replica.name,
            "reason": reason,
        }
    ]


async def test_who_can_not_be_connected_to_is_not_well() -> None:
    with blackhole() as silent:
        scene = Scene(f"http://127.0.0.1:{unused_port()}", silent, settings=HealthSettings(failures=1))
        began = asyncio.get_running_loop().time()
        for replica in scene.upstream.replicas:
            assert not await scene.checks.check(replica)
        await scene.upstream.aclose()

    assert asyncio.get_running_loop().time() - began == pytest.approx(3.0)
    assert [event["reason"] for event in scene.events] == ["ConnectError", "TimeoutError"]


async def test_a_failure_that_nobody_thought_of_is_a_failure_and_the_checks_go_on() -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        raise ZeroDivisionError

    scene = Scene("http://up.test", transport=httpx.MockTransport(refuse))
    async with scene.running():
        await scene.round()

    assert [event["reason"] for event in scene.events] == ["ZeroDivisionError"]


async def test_it_takes_failures_in_a_row_to_be_unhealthy_and_one_answer_to_be_healthy_again() -> None:
    good, bad = reply(), reply(status="500 Internal Server Error")
    answers = [bad, good, bad, bad, bad, good, bad, good]
    async with ScriptedUpstream([action for answer in answers for action in (read(), answer)]) as upstream:
        scene = Scene(upstream.url)
        seen = []
        for _ in answers:
            await scene.checks.check(scene.replica)
            seen.append(scene.replica.healthy)
        await scene.upstream.aclose()

    assert seen == [True, True, True, False, False, True, True, True]
    told = [(event["event"], event["log_level"], event["replica"]) for event in scene.events]
    name = scene.replica.name
    assert told == [("replica_unhealthy", "warning", name), ("replica_healthy", "info", name)]


@pytest.mark.parametrize(("chance", "wait"), [(0.0, 9.0), (0.5, 10.0), (0.999, 11.0)])
async def test_rounds_are_an_interval_apart_give_or_take_a_tenth(chance: float, wait: float) -> None:
    async with ScriptedUpstream(WELL) as upstream:
        scene = Scene(upstream.url, chance=chance)
        async with scene.running():
            for _ in range(3):
                await scene.round()
        await scene.upstream.aclose()

    assert len(upstream.requests) == 4
    assert upstream.accepted == 1
    assert scene.waits == pytest.approx([wait] * 4, abs=0.01)


async def test_all_are_asked_at_once_and_one_that_is_silent_holds_up_nobody() -> None:
    async with ScriptedUpstream([read(), stall()]) as silent, ScriptedUpstream(WELL) as well:
        scene = Scene(silent.url, silent.url, silent.url, well.url)
        began = asyncio.get_running_loop().time()
        async with scene.running():
            assert asyncio.get_running_loop().time() - began == pytest.approx(3.0)
            await scene.round()
        await scene.upstream.aclose()

    assert [replica.healthy for replica in scene.upstream.replicas] == [False, False, False, True]
    assert len(well.requests) == 2


async def test_replicas_that_come_are_asked_and_those_that_go_are_not_and_are_forgotten() -> None:
    async with ScriptedUpstream(ILL) as first, ScriptedUpstream(ILL) as second:
        scene = Scene(first.url)
        old, new = scene.replica, scene.make(second.url)
        async with scene.running():
            scene.upstream.replace([new])
            await scene.round()
            assert (len(first.requests), len(second.requests)) == (1, 1)
            scene.upstream.replace([old, new])
            await scene.round()
            assert (old.healthy, new.healthy) == (True, False)
            scene.upstream.replace([])
            await scene.round()
            assert scene.checks._failed == {}
        await scene.upstream.aclose()

    assert (len(first.requests), len(second.requests)) == (2, 2)


async def test_an_answer_too_large_is_an_answer_and_is_not_read_to_its_end() -> None:
    head = OK + b"content-length: %d\r\n\r\n" % (1 << 40)
    async with ScriptedUpstream([read(), send(head, bytes(2 * LARGEST_ANSWER)), wait_closed()]) as upstream:
        scene = Scene(upstream.url, settings=HealthSettings(failures=1))
        assert await scene.checks.check(scene.replica)
        await upstream.wait_until(lambda: upstream.open_connections == 0)
        await scene.upstream.aclose()


@pytest.mark.parametrize("healthy", [True, False])
async def test_while_calls_have_every_connection_a_check_tells_nothing(healthy: bool) -> None:
    gate = asyncio.Event()
    engine = Engine(TransportSettings(max_connections=1))
    async with ScriptedUpstream([read(), wait_for(gate), reply()]) as upstream:
        scene = Scene(upstream.url, transport=engine, settings=HealthSettings(failures=1))
        scene.replica.healthy = healthy
        call = asyncio.create_task(fetch(engine, request(upstream.url, timeouts={"read": 1000.0})))
        await upstream.wait_until(lambda: len(upstream.requests) == 1)

        assert await scene.checks.check(scene.replica) is healthy
        assert scene.replica.healthy is healthy
        assert scene.events == []
        gate.set()
        assert await call == (200, b"{}")
        await scene.upstream.aclose()


async def test_checks_that_are_cancelled_leave_no_connection() -> None:
    async with ScriptedUpstream([read(), stall()]) as upstream:
        engine = Engine()
        scene = Scene(upstream.url, transport=engine, settings=HealthSettings(timeout=1e6, failures=1))
        task = spawn(scene.checks.run(), name="health")
        await upstream.wait_until(lambda: len(upstream.requests) == 1)
        task.cancel()
        await asyncio.wait([task])

        assert task.cancelled()
        assert repr(engine) == f"<Engine [{upstream.url}: 0 active, 0 idle, 0 waiting]>"
        assert scene.replica.healthy
        await scene.upstream.aclose()


def test_every_dialect_says_how_it_is_asked_and_an_api_that_may_cost_is_asked_only_if_told_to() -> None:
    settings: dict[str, dict[str, Any]] = {"triton": {"mint": lambda: ("an-id", 0)}}
    assert all(make(**settings.get(kind, {})).health.startswith("/") for kind, make in DIALECTS.items())
    assert (DIALECTS["openai"]().health, DIALECTS["openai"]().checked) == ("/models", False)
