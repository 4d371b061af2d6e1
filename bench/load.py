"""The load generator: raw connections that send prepared requests and check every answer.

Run by the bench as `python -m bench.load JOB`, in a process of its own: at the line `warm` it sees to its connections and
prints `ready`, at `go` it does its job once and prints the result as JSON, until its standard input ends.
A wrong status, a body that is not whole, a missing chunk or `[DONE]` ends it with an error: figures of a proxy that
fails mean nothing.
"""

# ruff: noqa: D102 - most methods here are named, and explained, by asyncio and httptools
import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import httptools
import uvloop

from bench.ticker import Ticker
from bench.upstream import END_OF_ANSWER, MARK

KEY = "sk-bench-key-of-a-service-0123456789"
_FRESH = 2.0  # seconds, well under the five after which uvicorn closes an idle connection


class WrongAnswerError(Exception):
    """A contender answered something else than what the upstream said."""


@dataclass(frozen=True)
class Job:
    """What to send, and how much of it. The job's kind is the name of a function below."""

    kind: str
    port: int
    connections: int
    count: int  # requests or silent streams
    seconds: float = 10.0  # no new request after that
    rate: float = 0.0
    prompt_bytes: int = 600
    direct_port: int = 0  # with a rate: the upstream, which is asked at a quarter of the rate beside
    chunks: int = 0
    interval: float = 0.0
    warmup: int = 0


Answered = Callable[["Connection", int, bytes], None]


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time, with each answer handed over whole."""

    def __init__(self, failed: asyncio.Future[None]) -> None:
        self._failed = failed
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._answered: Answered | None = None
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes, answered: Answered) -> None:
        self._answered = answered
        self._body = []
        self._transport.write(request)

    def close(self) -> None:
        self.ended = True
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, WrongAnswerError) as error:
            self._fail(repr(error.__cause__ or error.__context__ or error))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended and self._answered is not None:
            self._fail(f"connection closed in an answer ({exc})")
        self.ended = True  # an idle one may be closed: it is replaced before the next load

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        answered, self._answered = self._answered, None
        if answered is None:
            self._fail("an answer that nobody asked for")
            return
        answered(self, self._parser.get_status_code(), b"".join(self._body))
        if not self._parser.should_keep_alive():
            self._fail("the contender does not keep the connection alive")

    def _fail(self, why: str) -> None:
        self.ended = True
        if not self._failed.done():
            self._failed.set_exception(WrongAnswerError(why))


class SilentStream(Connection):
    """A connection whose answer never ends; tells when its first event has come."""

    def __init__(self, failed: asyncio.Future[None], opened: Callable[[], None]) -> None:
        super().__init__(failed)
        self._opened = opened

    def on_body(self, data: bytes) -> None:
        if not self._body:
            self._opened()
        super().on_body(data)


class Lane:
    """Connections over which requests go at given times, and how long after its time each was answered."""

    def __init__(self, connections: list[Connection], request: bytes, answered: Callable[[], None]) -> None:
        self._idle = deque(connections)
        self._request = request
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


class Generator:
    """The connections of one job, and what goes wrong on any of them."""

    def __init__(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        self._job = job
        self._request = request_for(job)
        self._loop = loop
        self._failed: asyncio.Future[None] = loop.create_future()
        self._connections: list[Connection] = []
        self._direct: list[Connection] = []
        self._silent: list[Connection] = []
        self._used = 0.0
        self._small = request_for(Job("plain", job.port, 0, 0))
        loop.set_exception_handler(self._on_exception)

    async def warm_up(self) -> None:
        """See that all connections are open and have just been used; at first, do the job's whole warm-up."""
        first = not self._connections
        await self._connect()
        request = self._request if self._job.kind == "plain" and first else self._small
        await self._closed_loop(request, max(self._job.connections, self._job.warmup if first else 0))
        if first and self._job.kind == "silent":
            await self._open_silent(10)

    async def once(self) -> dict[str, float]:
        """Do the job."""
        try:
            return await self._once()
        finally:
            self._used = self._loop.time()

    async def _once(self) -> dict[str, float]:
        if self._job.kind == "plain":
            return await self._closed_loop(self._request, self._job.count)
        if self._job.kind == "rate":
            return await self._fixed_rate()
        if self._job.kind == "streams":
            return await self._all_at_once()
        return await self._open_silent(self._job.count)

    def close(self) -> None:
        for connection in self._connections + self._direct + self._silent:
            connection.close()

    async def _connect(self) -> None:
        """As many open connections as the job says; after a pause all are new, for servers close what is long idle."""
        if self._loop.time() - self._used > _FRESH:
            for connection in self._connections + self._direct:
                connection.close()
        self._connections = await self._alive(self._connections, self._job.port)
        if self._job.direct_port:
            self._direct = await self._alive(self._direct, self._job.direct_port)

    async def _alive(self, connections: list[Connection], port: int) -> list[Connection]:
        alive = [connection for connection in connections if not connection.ended]
        while len(alive) < self._job.connections:
            _, connection = await self._loop.create_connection(lambda: Connection(self._failed), "127.0.0.1", port)
            alive.append(connection)
        return alive

    def _on_exception(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self._failed.done():
            self._failed.set_exception(WrongAnswerError(f"{context.get('message')}: {context.get('exception')!r}"))

    async def _until(self, done: asyncio.Future[None], seconds: float) -> None:
        """Wait for `done`, or fail because a connection did or because it takes too long."""
        await asyncio.wait({done, self._failed}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self._failed.done():
            self._failed.result()
        if not done.done():
            raise WrongAnswerError(f"not done after {seconds:.0f} s")

    async def _closed_loop(self, request: bytes, count: int) -> dict[str, float]:
        """Every connection sends its next request when the last is answered, until `count` were or time is up."""
        done: asyncio.Future[None] = self._loop.create_future()
        deadline = self._loop.time() + self._job.seconds
        started = answers = 0

        def send(connection: Connection) -> None:
            nonlocal started
            started += 1
            connection.send(request, answered)

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

    async def _fixed_rate(self) -> dict[str, float]:
        """Requests at even times, whether or not earlier ones are answered; where asked, a quarter as many go straight.

        Both go on at once, so that both meet the same machine: the difference is what the contender adds.
        """
        done: asyncio.Future[None] = self._loop.create_future()
        count = self._job.count // 4 * 4
        ticks = answers = 0

        def answered() -> None:
            nonlocal answers
            answers += 1
            if answers == count + (count // 4 if self._direct else 0):
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
        result: dict[str, float] = {"answers": count}
        if self._direct:
            result |= {f"p{each}": through.percentile(each) - direct.percentile(each) for each in (50, 99)}
        return result

    async def _all_at_once(self) -> dict[str, float]:
        """One stream on every connection, their starts spread evenly over one interval."""
        done: asyncio.Future[None] = self._loop.create_future()
        chunks = ended = 0

        def answered(_: Connection, status: int, body: bytes) -> None:
            nonlocal chunks, ended
            chunks += check_stream(status, body, self._job.chunks)
            ended += 1
            if ended == len(self._connections):
                done.set_result(None)

        step = self._job.interval / len(self._connections)
        for number, connection in enumerate(self._connections):
            self._loop.call_later(number * step, connection.send, self._request, answered)
        await self._until(done, self._job.chunks * self._job.interval + 60)
        return {"chunks": chunks}

    async def _open_silent(self, count: int) -> dict[str, float]:
        """`count` more streams that have begun and say nothing, opened fifty at a time."""
        gate = asyncio.Semaphore(50)

        async def open_one() -> None:
            async with gate:
                opened: asyncio.Future[None] = self._loop.create_future()
                _, stream = await self._loop.create_connection(
                    lambda: SilentStream(self._failed, lambda: opened.set_result(None)), "127.0.0.1", self._job.port
                )
                self._silent.append(stream)
                stream.send(self._request, refuse_end)
                await self._until(opened, 30)

        await asyncio.gather(*(open_one() for _ in range(count)))
        return {"open": len(self._silent)}


def check_plain(status: int, body: bytes) -> None:
    if status != 200 or END_OF_ANSWER not in body or not body.rstrip().endswith(b"}"):
        raise WrongAnswerError(f"status {status}, body {body[:300]!r}")


def check_stream(status: int, body: bytes, chunks: int) -> int:
    found = body.count(MARK)
    if status != 200 or found != chunks or b'"total_tokens"' not in body or b"data: [DONE]" not in body:
        raise WrongAnswerError(f"status {status}, {found} of {chunks} chunks, end {body[-300:]!r}")
    return found


def refuse_end(_: Connection, status: int, body: bytes) -> None:
    raise WrongAnswerError(f"a silent stream ended: status {status}, body {body[:300]!r}")


def request_for(job: Job) -> bytes:
    """The one request that a job sends again and again: a talk of some turns whose length is as the job says."""
    script = {"streams": "stream", "silent": "silent"}.get(job.kind, "plain")
    question = 'What does the line "limit = 20" do, and why?\n\tTell it briefly: the reader is in a hurry. '
    turns = max(2, min(20, job.prompt_bytes // 2000))
    content = (question * (job.prompt_bytes // len(question) + 1))[: job.prompt_bytes // turns - 80]
    talk = [{"role": "assistant" if turn % 2 else "user", "content": content} for turn in range(turns)]
    call: dict[str, Any] = {"model": f"bench-{script}", "messages": talk, "temperature": 0.2, "max_tokens": 200}
    if script != "plain":
        call |= {"stream": True, "stream_options": {"include_usage": True}}
    body = json.dumps(call, separators=(",", ":")).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{job.port}\r\naccept: application/json\r\n"
        f"user-agent: bench/1.0\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def run(job: Job) -> None:
    loop = asyncio.get_running_loop()
    generator = Generator(job, loop)
    while word := await loop.run_in_executor(None, sys.stdin.readline):
        if word == "warm\n":
            await generator.warm_up()
            print("ready", flush=True)
        else:
            print(json.dumps(await generator.once()), flush=True)
    generator.close()


if __name__ == "__main__":
    try:
        uvloop.run(run(Job(**json.loads(sys.argv[1]))))
    except (WrongAnswerError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
