"""Replicas that are whatever addresses a name has: they come, they stay what they are, and they go."""

import asyncio
import socket
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

from gateway import discovery
from gateway.admission import ConcurrencySettings
from gateway.dialects import DIALECTS
from gateway.discovery import Discovery, system_lookup
from gateway.fleet import Endpoint, Replica, Rules, Timeouts, Upstream
from gateway.policy.balance import LeastLoad
from gateway.policy.breaker import Breaker, BreakerSettings
from gateway.policy.retry import RetrySettings
from gateway.tasks import spawn
from gateway.transport import Engine, PreparedRequest
from gateway.transport import Target as Destination
from gateway.transport.resolver import DaemonThreads
from tests.support.clock import virtual_time
from tests.support.upstream import ScriptedUpstream, forever, read, reply, send, wait_for

anyio_backend = virtual_time

HOST = "vllm.models.svc"


def chat_at(replica: Replica) -> Destination:
    found = replica.endpoint.destination("chat", "m", stream=False)
    assert found is not None
    return found


class Names:
    """A name server: `answers` are given one after another, and the last one for ever. An exception is raised."""

    def __init__(self, *answers: Iterable[str] | BaseException) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self) -> Iterable[str]:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Scene:
    """An upstream with one replica, by name, and what discovers the others."""

    def __init__(self, lookup: discovery.Lookup, port: int = 8000, chance: float = 0.5) -> None:
        self.waits: list[float] = []
        self._url = f"http://{HOST}:{port}/v1"
        self._log = LogCapture()
        breaker = Breaker(BreakerSettings(), lambda: 0.5)
        rules = Rules(Timeouts(), RetrySettings(), ConcurrencySettings(), LeastLoad(), breaker)
        self.upstream = Upstream("up", DIALECTS["openai"](), [self.make(None)], Engine(), rules)
        self.discovery = Discovery(
            self.upstream,
            self.make,
            lookup=lookup,
            sleep=self._sleep,
            chance=lambda: chance,
            logger=structlog.wrap_logger(
                None, processors=[self._log], wrapper_class=structlog.make_filtering_bound_logger(20)
            ),
        )

    def make(self, address: str | None) -> Replica:
        endpoint = Endpoint(self._url, DIALECTS["openai"](), [], address)
        return Replica(endpoint, Breaker(BreakerSettings(), lambda: 0.5), lambda: 0.0, 30.0)

    @property
    def names(self) -> list[str]:
        return [replica.name for replica in self.upstream.replicas]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [dict(entry) for entry in self._log.entries]

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        if len(self.waits) == 4:
            raise asyncio.CancelledError
        await asyncio.sleep(seconds)


async def test_until_the_first_answer_there_is_one_replica_by_name_and_then_one_for_each_address() -> None:
    scene = Scene(Names(["10.0.0.3", "10.0.0.4"]))
    assert scene.names == [f"{HOST}:8000"]

    await scene.discovery.refresh()

    assert scene.names == ["10.0.0.3:8000", "10.0.0.4:8000"]
    assert [replica.endpoint.address for replica in scene.upstream.replicas] == ["10.0.0.3", "10.0.0.4"]
    assert scene.events == [
        {
            "event": "replicas_changed",
            "log_level": "info",
            "upstream": "up",
            "replicas": 2,
            "added": ["10.0.0.3:8000", "10.0.0.4:8000"],
            "removed": [f"{HOST}:8000"],
        }
    ]


async def test_each_address_is_one_replica_however_it_is_written_and_in_whatever_order_they_come() -> None:
    scene = Scene(Names(["fd00::4", "10.0.0.20", "10.0.0.3", "FD00:0:0::4", "10.0.0.3", "fd00::3"]))
    await scene.discovery.refresh()

    assert scene.names == ["10.0.0.3:8000", "10.0.0.20:8000", "[fd00::3]:8000", "[fd00::4]:8000"]


async def test_a_replica_whose_address_stays_is_the_same_and_the_others_come_and_go() -> None:
    scene = Scene(Names(["10.0.0.3", "10.0.0.4"], ["10.0.0.5", "10.0.0.4"]))
    await scene.discovery.refresh()
    stays = scene.upstream.replicas[1]
    await scene.discovery.refresh()

    assert scene.names == ["10.0.0.4:8000", "10.0.0.5:8000"]
    assert scene.upstream.replicas[0] is stays
    assert (scene.events[1]["added"], scene.events[1]["removed"]) == (["10.0.0.5:8000"], ["10.0.0.3:8000"])


async def test_the_same_addresses_in_another_order_change_nothing() -> None:
    scene = Scene(Names(["10.0.0.3", "10.0.0.4"], ["10.0.0.4", "10.0.0.3", "10.0.0.4"]))
    await scene.discovery.refresh()
    before = scene.upstream.replicas
    await scene.discovery.refresh()

    assert scene.upstream.replicas is before
    assert len(scene.events) == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "gaierror"),
        (TimeoutError(), "TimeoutError"),
        (UnicodeError("label too long"), "UnicodeError"),
        (RuntimeError("can't start new thread"), "RuntimeError"),
        (["10.0.0.3", "not an address"], "ValueError"),
        ([], "no address"),
    ],
)
async def test_without_an_answer_the_replicas_stay_and_it_is_said_when_that_begins_and_when_it_ends(
    answer: Iterable[str] | Exception, reason: str
) -> None:
    scene = Scene(Names(["10.0.0.3"], answer, answer, answer, ["10.0.0.3"], answer, ["10.0.0.4"]))
    await scene.discovery.refresh()
    before = scene.upstream.replicas
    for _ in range(4):
        await scene.discovery.refresh()
        assert scene.upstream.replicas is before
    for _ in range(2):
        await scene.discovery.refresh()

    failed = {
        "event": "discovery_failed",
        "log_level": "warning",
        "upstream": "up",
        "reason": reason,
        "replicas": 1,
    }
    recovered = {"event": "discovery_recovered", "log_level": "info", "upstream": "up"}
    assert scene.events[1:-1] == [failed, recovered, failed, recovered]
    assert scene.events[-1]["event"] == "replicas_changed"


async def test_without_a_first_answer_the_replica_by_name_stays() -> None:
    scene = Scene(Names(OSError(), [], ["10.0.0.3"]))
    for _ in range(2):
        await scene.discovery.refresh()
        assert scene.names == [f"{HOST}:8000"]
    await scene.discovery.refresh()

    assert scene.names == ["10.0.0.3:8000"]


async def test_a_lookup_without_end_is_given_up() -> None:
    async def never() -> Iterable[str]:
        await asyncio.Event().wait()
        return []

    scene = Scene(never)
    began = asyncio.get_running_loop().time()
    await scene.discovery.refresh()

    assert asyncio.get_running_loop().time() - began == pytest.approx(10.0)
    assert scene.events[0]["reason"] == "TimeoutError"


@pytest.mark.parametrize(("chance", "wait"), [(0.0, 12.0), (0.5, 15.0), (0.999, 18.0)])
async def test_it_looks_at_once_and_then_again_and_again_whatever_it_finds(chance: float, wait: float) -> None:
    names = Names(["10.0.0.3"], OSError(), [], ["10.0.0.4"])
    scene = Scene(names, chance=chance)
    with suppress(asyncio.CancelledError):
        await scene.discovery.run()

    assert names.asked == 4
    assert scene.waits == pytest.approx([wait] * 4, abs=0.01)
    assert scene.names == ["10.0.0.4:8000"]


async def test_calls_go_to_the_addresses_under_the_name() -> None:
    async with ScriptedUpstream([forever(read(), reply())], host="0.0.0.0") as upstream:
        scene = Scene(Names(["127.0.0.1", "127.0.0.2"]), upstream.port)
        await scene.discovery.refresh()
        for replica in [*scene.upstream.replicas] * 2:
            request = PreparedRequest(chat_at(replica), [], b"{}", {})
            response = await scene.upstream.transport.handle_async_request(request)
            assert await response.aread() == b"{}"
        assert upstream.accepted == 2
        await scene.upstream.aclose()

    assert {received.header("host") for received in upstream.requests} == {f"{HOST}:{upstream.port}"}


async def test_a_call_in_flight_at_an_address_that_goes_ends_there() -> None:
    gate = asyncio.Event()
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"
    async with ScriptedUpstream([read(), send(head), wait_for(gate), send(b"{}")]) as upstream:
        scene = Scene(Names(["127.0.0.1"], ["127.0.0.2"]), upstream.port)
        await scene.discovery.refresh()
        (gone,) = scene.upstream.replicas
        request = PreparedRequest(chat_at(gone), [], b"{}", {})
        response = await scene.upstream.transport.handle_async_request(request)
        await scene.discovery.refresh()
        gate.set()

        assert gone not in scene.upstream.replicas
        assert await response.aread() == b"{}"
        await scene.upstream.aclose()


# The system's resolver.


async def test_the_system_is_asked_in_a_thread_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def answer(*arguments: Any, **options: Any) -> list[Any]:
        asked.append((arguments, options, threading.current_thread().name))
        four = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.3", 8000))
        six = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::3", 8000, 0, 0))
        return [six, four]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    lookup = system_lookup(HOST, 8000, DaemonThreads(1))

    assert list(await lookup()) == ["fd00::3", "10.0.0.3"]
    options = {"type": socket.SOCK_STREAM, "flags": socket.AI_ADDRCONFIG}
    assert asked == [((HOST, 8000), options, "resolver")]


async def test_the_system_knows_this_machine_and_not_what_does_not_exist() -> None:
    assert "127.0.0.1" in await system_lookup("localhost", 8000, DaemonThreads(1))()
    with pytest.raises(OSError, match=r".+"):
        await system_lookup("no-such-host.invalid", 8000, DaemonThreads(1))()


async def test_a_resolver_that_hangs_holds_up_its_own_upstream_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: held.wait())
    scene = Scene(system_lookup(HOST, 8000, DaemonThreads(1)))
    hanging = spawn(scene.discovery.refresh(), name="discovery")
    try:
        other = Scene(Names(["10.0.0.3"]))
        await other.discovery.refresh()
        assert other.names == ["10.0.0.3:8000"]
        assert not hanging.done()
        await hanging
        assert scene.events[0]["reason"] == "TimeoutError"
    finally:
        held.set()
