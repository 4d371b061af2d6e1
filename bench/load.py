"""The load generator: raw connections that send prepared requests and check every answer.

Run by the bench as `python -m bench.load JOB`, in a process of its own. It does what it is told line by line: at `warm`
it sees to its connections, at `go` it does the part that is measured, at `end` it waits for what is still open; to each
it answers with one line of JSON. A wrong status, a body that is not whole, a missing chunk or `[DONE]` ends it with an
error: figures of a proxy that fails mean nothing.
"""

import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import uvloop

from bench.connection import Connection
from bench.talk import WrongAnswerError, check_plain, check_silent, check_stream, request
from bench.ticker import Ticker
from bench.upstream import MARK

_FRESH = 2.0  # seconds, well under the five after which uvicorn closes an idle connection
_SMALL = 600  # bytes of a usual prompt
Result = dict[str, float]


@dataclass(frozen=True)
class Job:
    """What to send, and how much of it; `kind` is a key of KINDS below."""

    kind: str
    port: int
    connections: int
    count: int = 0  # requests or silent streams
    seconds: float = 10.0  # no new request after that
    rate: float = 0.0
    prompt_bytes: int = _SMALL
    direct_port: int = 0  # with a rate: the upstream, which is asked at a quarter of the rate beside
    chunks: int = 0
    interval: float = 0.0
    warmup: int = 0


class Load:
    """A job: its connections, and what goes wrong on any of them."""

    script = "plain"

    def __init__(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        self._job = job
        self._loop = loop
        self._request = request(job.port, self.script, job.prompt_bytes)
        self._failed: asyncio.Future[None] = loop.create_future()
        self._connections: list[Connection] = []
        self._used = 0.0
        loop.set_exception_handler(self._on_exception)

    async def warm(self) -> Result:
        """See that all connections are open and have just been used; at first, send the job's whole warm-up."""
        first = not self._connections
        await self._connect()
        plain = request(self._job.port, "plain", self._job.prompt_bytes if first else _SMALL)
        return await self._closed_loop(plain, max(self._job.connections, self._job.warmup if first else 0))

    async def go(self) -> Result:
        """Do what is measured."""
        raise NotImplementedError

    async def end(self) -> Result:
        """Wait for what `go` has left open."""
        self._used = self._loop.time()
        return {}

    async def _connect(self) -> None:
        """As many open connections as the job says; after a pause all are new, for servers close what is long idle."""
        self._connections = await self._alive(self._connections, self._job.port)

    async def _alive(self, connections: list[Connection], port: int) -> list[Connection]:
        if self._loop.time() - self._used > _FRESH:
            for connection in connections:
                connection.close()
        alive = [connection for connection in connections if not connection.ended]
        return alive + [await self._open(port) for _ in range(self._job.connections - len(alive))]

    async def _open(self, port: int, piece: Callable[[Connection, bytes], None] | None = None) -> Connection:
        _, connection = await self._loop.create_connection(lambda: Connection(self._failed, piece), "127.0.0.1", port)
        return connection

    async def _until(self, done: asyncio.Future[None], seconds: float) -> None:
        """Wait for `done`, or fail because a connection did or because it takes too long."""
        await asyncio.wait({done, self._failed}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self._failed.done():
            self._failed.result()
        if not done.done():
            raise WrongAnswerError(f"not done after {seconds:.0f} s")

    def _on_exception(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self._failed.done():
            self._failed.set_exception(WrongAnswerError(f"{context.get('message')}: {context.get('exception')!r}"))

    async def _closed_loop(self, what: bytes, count: int) -> Result:
        """Every connection sends its next request when the last is answered, until `count` were or time is up."""
        done: asyncio.Future[None] = self._loop.create_future()
        deadline = self._loop.time() + self._job.seconds
        started = answers = 0

        def send(connection: Connection) -> None:
            nonlocal started
            started += 1
            connection.send(what, answered)

        def answered(connection: Connection, status: int, body: bytes) -> None:
            nonlocal answers
            check_plain(status, body)
            answers += 1
            if started < count and self._loop.time() < deadline:
                send(connection)
            elif answers == started:
                done.set_result(None)

        began = time.monotonic()
        for connection in self._connections[:count]:
            send(connection)
        await self._until(done, self._job.seconds + 60)
        return {"answers": answers, "seconds": time.monotonic() - began}


class Plain(Load):
    """Plain requests, as fast as the contender answers."""

    async def go(self) -> Result:
        """The closed loop."""
        return await self._closed_loop(self._request, self._job.count)


class Lane:
    """Connections over which requests go at given times, and how long after its time each was answered."""

    def __init__(self, connections: Sequence[Connection], what: bytes, answered: Callable[[], None]) -> None:
        self._idle = deque(connections)
        self._request = what
        self._tell = answered
        self._waiting: deque[float] = deque()
        self._due: dict[Connection, float] = {}
        self._late: list[float] = []

    def send(self, due: float) -> None:
        """Send one request that was due at `due`, or as soon as a connection is idle."""
        if self._idle:
            self._send(self._idle.popleft(), due)
        else:
            self._waiting.append(due)

    def percentile(self, percent: int) -> float:
        """The lateness, in seconds, that `percent` of the answers did not pass."""
        late = sorted(self._late)
        return late[min(len(late) - 1, len(late) * percent // 100)]

    def _send(self, connection: Connection, due: float) -> None:
        self._due[connection] = due
        connection.send(self._request, self._answered)

    def _answered(self, connection: Connection, status: int, body: bytes) -> None:
        self._late.append(time.monotonic() - self._due[connection])
        check_plain(status, body)
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)
        self._tell()


class Rate(Load):
    """Plain requests at even times, whether or not earlier ones are answered; where asked, a quarter as many go straight.

    Both go on at once, so that both meet the same machine: the difference is what the contender adds.
    """

    def __init__(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(job, loop)
        self._direct: list[Connection] = []

    async def go(self) -> Result:
        """The requests of the job's rate, and how much later than straight answers theirs came."""
        done: asyncio.Future[None] = self._loop.create_future()
        count = self._job.count // 4 * 4
        left = count + (count // 4 if self._direct else 0)
        ticks = 0

        def answered() -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set_result(None)

        through = Lane(self._connections, self._request, answered)
        direct = Lane(self._direct, self._request, answered)

        def tick(due: float) -> None:
            nonlocal ticks
            ticks += 1
            if ticks == count:
                ticker.stop()
            through.send(due)
            if self._direct and ticks % 4 == 0:
                direct.send(due)

        ticker = Ticker(self._loop, self._job.rate, tick)
        try:
            await self._until(done, count / self._job.rate + 60)
        finally:
            ticker.stop()
        result: Result = {"answers": count}
        if self._direct:
            result |= {f"p{each}": through.percentile(each) - direct.percentile(each) for each in (50, 99)}
        return result

    async def _connect(self) -> None:
        await super()._connect()
        if self._job.direct_port:
            self._direct = await self._alive(self._direct, self._job.direct_port)


class Streams(Load):
    """One stream on every connection. What is measured lies between the beginning of the last and the end of the first."""

    script = "stream"

    def __init__(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(job, loop)
        self._chunks = self._open_streams = self._goal = 0
        self._reached = self._ended = loop.create_future()
        self._limit = job.chunks * job.interval + 60

    async def warm(self) -> Result:
        """Begin the streams, evenly over one interval, and wait until each may be expected to have begun."""
        result = await super().warm()
        self._chunks = 0
        self._open_streams = len(self._connections)
        self._ended = self._loop.create_future()
        step = self._job.interval / len(self._connections)
        for number, connection in enumerate(self._connections):
            self._loop.call_later(number * step, connection.send, self._request, self._answered)
        await self._counted(self._open_streams * 3)
        return result

    async def go(self) -> Result:
        """Count chunks until few are left."""
        before, began = self._chunks, time.monotonic()
        await self._counted(self._open_streams * (self._job.chunks - 3))
        return {"chunks": self._chunks - before, "seconds": time.monotonic() - began}

    async def end(self) -> Result:
        """Wait until every stream has ended, and ended well."""
        await self._until(self._ended, self._limit)
        return await super().end()

    async def _counted(self, goal: int) -> None:
        self._goal = goal
        self._reached = self._loop.create_future()
        await self._until(self._reached, self._limit)

    async def _open(self, port: int, _: Callable[[Connection, bytes], None] | None = None) -> Connection:
        return await super()._open(port, self._count)

    def _count(self, _: Connection, data: bytes) -> None:
        self._chunks += data.count(MARK)  # one that is split is lost here; the check of the whole stream is exact
        if self._chunks >= self._goal and not self._reached.done():
            self._reached.set_result(None)

    def _answered(self, _: Connection, status: int, body: bytes) -> None:
        check_stream(status, body, self._job.chunks)
        self._open_streams -= 1
        if not self._open_streams:
            self._ended.set_result(None)


class Silent(Load):
    """Streams that have begun and say nothing, kept open."""

    script = "silent"

    def __init__(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(job, loop)
        self._streams: list[Connection] = []

    async def warm(self) -> Result:
        """Open ten, so that what a contender loads at its first stream is not counted."""
        await super().warm()
        return await self._open_streams(10)

    async def go(self) -> Result:
        """Open the job's count more."""
        return await self._open_streams(self._job.count)

    async def _open_streams(self, count: int) -> Result:
        gate = asyncio.Semaphore(50)

        async def open_one() -> None:
            async with gate:
                begun: asyncio.Future[None] = self._loop.create_future()

                def first(_: Connection, __: bytes) -> None:
                    if not begun.done():
                        begun.set_result(None)

                stream = await self._open(self._job.port, first)
                self._streams.append(stream)
                stream.send(self._request, lambda _, status, body: check_silent(status, body))
                await self._until(begun, 30)

        await asyncio.gather(*(open_one() for _ in range(count)))
        return {"open": len(self._streams)}


KINDS: dict[str, type[Load]] = {"plain": Plain, "rate": Rate, "streams": Streams, "silent": Silent}


async def run(job: Job) -> None:
    loop = asyncio.get_running_loop()
    load = KINDS[job.kind](job, loop)
    steps = {"warm": load.warm, "go": load.go, "end": load.end}
    while word := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await steps[word.strip()]()), flush=True)


if __name__ == "__main__":
    try:
        uvloop.run(run(Job(**json.loads(sys.argv[1]))))
    except (WrongAnswerError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
