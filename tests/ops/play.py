"""The play: a gateway that is well, then in every trouble that there is an alert for, then mended, then gone.

It is acted once, and what Prometheus said after each act is kept; tests look at that, and ask Prometheus what they like.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import orjson

from gateway.tasks import spawn
from tests.ops.engine import Engine
from tests.ops.prometheus import Prometheus
from tests.support.client import Caller
from tests.support.processes import GatewayProcess, Process
from tests.support.stage import chat, request
from tests.support.upstream import unused_port

GATEWAY, CRAMPED = "gateway", "cramped"  # jobs
REPLICAS = {
    "steady": 2,
    "failing": 2,
    "keyless": 1,
    "dry": 1,
    "narrow": 1,
    "cutting": 1,
    "slow": 1,
    "uneven": 2,
    "pooled": 1,
    "triton": 1,
}
RATES = {
    "steady": 10,
    "failing": 10,
    "keyless": 3,
    "dry": 3,
    "narrow": 8,
    "cutting": 4,
    "slow": 4,
    "uneven": 4,
    "pooled": 5,
}
STREAMS = ("cutting", "slow", "uneven")
DESCRIPTORS, IDLE = 100, 70  # that the cramped one may have; connections that then take most of them

CONFIG = """\
server: {{host: 127.0.0.1, port: 0, admin_port: 0, drain_seconds: 1}}
auth: {{required: false}}
breaker: {{ejection: 1, max_ejection: 2, slow_start: 0}}
upstreams:
  steady: {{kind: vllm, urls: {steady}, load: {{interval: 0.5}}}}
  failing: {{kind: openai, urls: {failing}, retry: {{reserve: 2}}}}
  keyless: {{kind: openai, urls: {keyless}, api_key: sk-that-is-refused}}
  dry: {{kind: openai, urls: {dry}, api_key: sk-of-a-dry-account}}
  narrow: {{kind: openai, urls: {narrow}, concurrency: {{limit: 1, queue: 4}}}}
  cutting: {{kind: openai, urls: {cutting}, breaker: {{failures: 100000, served: 0}}}}
  slow: {{kind: openai, urls: {slow}}}
  uneven: {{kind: openai, urls: {uneven}, balance: round_robin}}
  pooled:
    kind: vllm
    urls: {pooled}
    transport: {{max_connections: 1}}
    health: {{interval: 1}}
    load: {{enabled: false}}
    concurrency: {{wait: 30}}
    timeouts: {{pool: 30}}
  triton: {{kind: triton, url: {triton[0]}, load: {{port: {triton_port}, interval: 0.5}}}}
models:
  steady: {{targets: [{{upstream: steady}}], fallbacks: [slow]}}
  failing: {{targets: [{{upstream: failing}}]}}
  keyless: {{targets: [{{upstream: keyless}}]}}
  dry: {{targets: [{{upstream: dry}}]}}
  narrow: {{targets: [{{upstream: narrow}}]}}
  cutting: {{targets: [{{upstream: cutting}}]}}
  slow: {{targets: [{{upstream: slow}}]}}
  uneven: {{targets: [{{upstream: uneven}}], hedge: {{after: 0.1}}}}
  pooled: {{targets: [{{upstream: pooled}}]}}
  triton: {{targets: [{{upstream: triton}}]}}
"""
CRAMPED_CONFIG = """\
server: {{host: 127.0.0.1, port: {port}, admin_port: {admin_port}, drain_seconds: 1, limits: {{head_seconds: 300}}}}
auth: {{required: false}}
upstreams: {{steady: {{kind: openai, urls: {steady}}}}}
models: {{steady: {{targets: [{{upstream: steady}}]}}}}
"""

P = TypeVar("P", bound=Process)
Firing = frozenset[tuple[str, str]]
"""Alerts, each with what it tells of: an upstream, a model, or a job."""

TROUBLE: Firing = frozenset(
    {
        *(("GatewayErrorBudgetBurnsFast", model) for model in ("failing", "keyless", "dry", "narrow", "cutting")),
        *(("GatewayErrorBudgetBurnsSlowly", model) for model in ("failing", "keyless", "dry", "narrow", "cutting")),
        ("GatewayFirstTokenSlow", "slow"),
        ("GatewayStreamsCut", "cutting"),
        ("GatewayUpstreamOut", "failing"),
        ("GatewayReplicaOut", "failing"),
        ("GatewayKeyRefused", "keyless"),
        ("GatewayOutOfQuota", "dry"),
        ("GatewayRetryBudgetEmpty", "failing"),
        ("GatewayShedding", "narrow"),
        ("GatewayLoopLags", GATEWAY),
        ("GatewayLogLinesDropped", CRAMPED),
        ("GatewayFileDescriptorsShort", CRAMPED),
    }
)
REMEMBERED: Firing = frozenset(one for one in TROUBLE if one[0] == "GatewayErrorBudgetBurnsSlowly")
"""What is not over as soon as the trouble is, because it looks back for hours."""
GONE: Firing = frozenset({("GatewayGone", CRAMPED)})


class Pausable(GatewayProcess):
    """A gateway whose event loop can be kept from running."""

    async def pause(self, seconds: float) -> None:
        """Keep it from running for so long."""
        os.kill(self._child.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            os.kill(self._child.pid, signal.SIGCONT)


class Cramped(Process):
    """A gateway with few descriptors, and a stdout that takes nothing."""

    def __init__(self, folder: Path, steady: list[str]) -> None:
        self.port, self.admin_port = unused_port(), unused_port()
        config = folder / "cramped.yaml"
        config.write_text(CRAMPED_CONFIG.format(port=self.port, admin_port=self.admin_port, steady=steady))
        program = Path(sys.executable).parent / "gateway"
        super().__init__(
            [
                "sh",
                "-c",
                f'ulimit -n {DESCRIPTORS}; exec "$0" serve --config "$1" >/dev/full',
                str(program),
                str(config),
            ]
        )


@dataclass
class Run:
    """What has been seen. Times are seconds since 1970. `drawn_at`: when there was most to see."""

    prometheus: Prometheus
    began: float
    seen: dict[str, Firing] = field(default_factory=dict)
    drawn_at: float = 0.0
    ended: float = 0.0


@contextlib.contextmanager
def acted(folder: Path) -> Iterator[Run]:
    """Act the play. Prometheus can be asked for as long as this is entered."""
    with contextlib.ExitStack() as stack:
        yield asyncio.run(_act(folder, stack))


async def _act(folder: Path, stack: contextlib.ExitStack) -> Run:
    async with contextlib.AsyncExitStack() as inner:
        engines = {
            name: [await inner.enter_async_context(Engine(name)) for _ in range(number)]
            for name, number in REPLICAS.items()
        }
        urls = {name: [f"{one.url}/v1" for one in ones] for name, ones in engines.items()}
        config = folder / "gateway.yaml"
        triton = engines["triton"][0]
        config.write_text(CONFIG.format(**{**urls, "triton": [triton.url]}, triton_port=triton.port), encoding="utf-8")
        gateway = await _started(inner, Pausable(config))
        cramped = await _started(inner, Cramped(folder, urls["steady"]))
        await _until(lambda: _listens(cramped.admin_port), 10)
        admin = gateway.admin_url.removeprefix("http://")
        jobs = {GATEWAY: admin, CRAMPED: f"127.0.0.1:{cramped.admin_port}"}
        prometheus = Prometheus(folder, jobs)
        await asyncio.to_thread(prometheus.__enter__)
        stack.callback(prometheus.stop)
        run = Run(prometheus, time.time())
        await _until(lambda: prometheus.healthy_targets() == 2, 30)
        async with _calling(int(gateway.url.rpartition(":")[2])):
            await _calm(run)
            await _trouble(run, engines, gateway, cramped)
            await _mended(run)
        await asyncio.to_thread(cramped.stop)
        run.seen["gone"] = await _firing(prometheus, lambda firing: firing >= GONE, 30)
        run.ended = time.time()
        return run


async def _calm(run: Run) -> None:
    """Nothing is wrong, but that some callers are, and some leave."""
    await asyncio.sleep(15)
    fired = await asyncio.to_thread(run.prometheus.over, 'ALERTS{alertstate="firing"}', run.began, time.time())
    run.seen["calm"] = frozenset((one.labels["alertname"], _of(one.labels)) for one in fired)


async def _trouble(run: Run, engines: Mapping[str, list[Engine]], gateway: Pausable, cramped: Cramped) -> None:
    for name, ones in engines.items():
        if name not in ("steady", "triton"):
            for one in ones[: 1 if name == "uneven" else None]:
                one.ill = True
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(IDLE):
            await stack.enter_async_context(await Caller.connect(cramped.port))
        for task in (_pauses(gateway), _calls(cramped.port, "steady", 4)):
            stack.callback(spawn(task, name="trouble").cancel)
        await _firing(run.prometheus, lambda firing: firing >= TROUBLE, 90)
        await asyncio.sleep(2)  # what fires besides would have by now
        run.seen["trouble"] = await _firing(run.prometheus)
        run.drawn_at = time.time()
    for ones in engines.values():
        for one in ones:
            one.ill = False


async def _mended(run: Run) -> None:
    run.seen["mended"] = await _firing(run.prometheus, lambda firing: firing <= REMEMBERED, 60)


async def _pauses(gateway: Pausable) -> None:
    while True:
        await gateway.pause(0.7)  # longer than from one look at the loop's lag to the next
        await asyncio.sleep(1.4)


# Whoever calls


@contextlib.asynccontextmanager
async def _calling(port: int) -> AsyncIterator[None]:
    """Calls for every model, evenly; and now and then from callers who are wrong, or leave."""
    callers = [_calls(port, model, rate) for model, rate in RATES.items()] + [_wrong(port)]
    tasks = [spawn(caller, name="caller") for caller in callers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _calls(port: int, model: str, rate: float) -> None:
    async with asyncio.TaskGroup() as group:
        for number in itertools.count():
            stream = model in STREAMS or (model == "steady" and number % 2 == 0)
            group.create_task(_call(port, _asking(model, stream=stream)))
            await asyncio.sleep(1 / rate)


async def _call(port: int, asked: bytes, *, until: bytes = b"") -> None:
    """One call on a connection of its own, to its end, or `until` something has come."""
    with contextlib.suppress(OSError, EOFError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(asked)
            await (reader.readuntil(until) if until else reader.read())
        finally:
            writer.close()


def _asking(model: str, *, stream: bool) -> bytes:
    return request(orjson.dumps(chat(model=model, stream=stream)), connection="close")


async def _wrong(port: int) -> None:
    while True:
        await _call(port, _asking("nobodys", stream=False))
        await _call(port, _asking("steady", stream=True), until=b"word")
        await _call(port, b"GET / HTTP/1.1\r\nx: " + b"x" * 100_000 + b"\r\n\r\n")
        await asyncio.sleep(0.5)


# Whoever watches


async def _firing(prometheus: Prometheus, enough: Callable[[Firing], bool] = bool, patience: float = 0) -> Firing:
    """The alerts that fire once there are `enough` of them, or as they are when patience is over."""
    deadline = time.monotonic() + patience
    while True:
        firing = frozenset(
            (one["labels"]["alertname"], _of(one["labels"])) for one in await asyncio.to_thread(prometheus.alerts)
        )
        if enough(firing) or time.monotonic() >= deadline:
            return firing
        await asyncio.sleep(0.5)


def _of(labels: Mapping[str, str]) -> str:
    return labels.get("upstream") or labels.get("model") or labels["job"]


async def _until(condition: Callable[[], bool], patience: float) -> None:
    async with asyncio.timeout(patience):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.2)


async def _started(stack: contextlib.AsyncExitStack, process: P) -> P:
    await asyncio.to_thread(process.__enter__)
    stack.push_async_callback(asyncio.to_thread, process.stop)
    return process


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False
