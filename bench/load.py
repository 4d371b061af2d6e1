"""The load generator: raw connections that send prepared requests and check every answer.

Run by the bench as `python -m bench.load JOB`, in a process of its own: it warms up, prints `ready`, waits for a line,
does its job, prints the result as JSON, and keeps its connections until its standard input ends. A wrong status, a
body that is not whole, a missing chunk or `[DONE]` ends it with an error: figures of a proxy that fails mean nothing.
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


class WrongAnswerError(Exception):
    """A contender answered something else than what the upstream said."""


@dataclass(frozen=True)
class Job:
    """What to send, and how much of it. The job's kind is the name of a function below."""

    kind: str
    port: int
    connections: int
    count: int  # requests or streams; with a rate, requests too
    seconds: float = 10.0  # no new request after that
    rate: float = 0.0
    prompt_bytes: int = 600
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
        if not self.ended:
            self._fail(f"connection closed by the contender ({exc}), in an answer: {self._answered is not None}")

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


class Generator:
    """The connections of one job, and what goes wrong on any of them."""

    def __init__(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        self.job = job
        self.loop = loop
        self.failed: asyncio.Future[None] = loop.create_future()
        self.connections: list[Connection] = []

    async def connect(self, how_many: int) -> None:
        for _ in range(how_many):
            _, connection = await self.loop.create_connection(
                lambda: Connection(self.failed), "127.0.0.1", self.job.port
            )
            self.connections.append(connection)

    async def until(self, done: asyncio.Future[Any], seconds: float) -> None:
        """Wait for `done`, or fail because a connection did or because it takes too long."""
        await asyncio.wait({done, self.failed}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self.failed.done():
            self.failed.result()
        if not done.done():
            raise WrongAnswerError(f"not done after {seconds:.0f} s")

    async def closed_loop(self, request: bytes, count: int, seconds: float) -> dict[str, float]:
        """Every connection sends its next request when the last is answered, until `count` were or time is up."""
        done = self.loop.create_future()
        deadline = self.loop.time() + seconds
        started = answers = 0

        def send(connection: Connection) -> None:
            nonlocal started
            started += 1
            connection.send(request, answered)

        def answered(connection: Connection, status: int, body: bytes) -> None:
            nonlocal answers
            check_plain(status, body)
            answers += 1
            if started < count and self.loop.time() < deadline:
                send(connection)
            elif answers == started:
                done.set_result(None)

        began = time.monotonic()
        for connection in self.connections[:count]:
            send(connection)
        await self.until(done, seconds + 60)
        return {"answers": answers, "seconds": time.monotonic() - began}

    async def fixed_rate(self, request: bytes, count: int, rate: float) -> dict[str, float]:
        """Requests at even times, whether or not earlier ones are answered; how long after its time each was."""
        done = self.loop.create_future()
        idle = list(self.connections)
        waiting: deque[float] = deque()
        sent_for: dict[Connection, float] = {}
        late: list[float] = []
        ticks = 0

        def send(connection: Connection, due: float) -> None:
            sent_for[connection] = due
            connection.send(request, answered)

        def answered(connection: Connection, status: int, body: bytes) -> None:
            late.append(time.monotonic() - sent_for[connection])
            check_plain(status, body)
            if waiting:
                send(connection, waiting.popleft())
            else:
                idle.append(connection)
            if len(late) == count:
                done.set_result(None)

        def tick(due: float) -> None:
            nonlocal ticks
            ticks += 1
            if ticks == count:
                ticker.stop()
            if idle:
                send(idle.pop(), due)
            else:
                waiting.append(due)

        ticker = Ticker(self.loop, rate, tick)
        try:
            await self.until(done, count / rate + 60)
        finally:
            ticker.stop()
        late.sort()
        return {"answers": count, "p50": late[count // 2], "p99": late[min(count - 1, count * 99 // 100)]}

    async def all_at_once(self, request: bytes) -> dict[str, float]:
        """One stream on every connection, their starts spread evenly over one interval."""
        done = self.loop.create_future()
        chunks = 0
        ended = 0

        def answered(_: Connection, status: int, body: bytes) -> None:
            nonlocal chunks, ended
            chunks += check_stream(status, body, self.job.chunks)
            ended += 1
            if ended == len(self.connections):
                done.set_result(None)

        step = self.job.interval / len(self.connections)
        for number, connection in enumerate(self.connections):
            self.loop.call_later(number * step, connection.send, request, answered)
        await self.until(done, self.job.chunks * self.job.interval + 60)
        return {"chunks": chunks}

    async def open_silent(self, request: bytes, count: int) -> None:
        """`count` more streams that have begun and say nothing, opened fifty at a time."""
        gate = asyncio.Semaphore(50)

        async def open_one() -> None:
            async with gate:
                opened: asyncio.Future[None] = self.loop.create_future()
                _, stream = await self.loop.create_connection(
                    lambda: SilentStream(self.failed, lambda: opened.set_result(None)), "127.0.0.1", self.job.port
                )
                self.connections.append(stream)
                stream.send(request, refuse_end)
                await self.until(opened, 30)

        await asyncio.gather(*(open_one() for _ in range(count)))


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
    request = request_for(job)
    await generator.connect(job.connections)
    if job.warmup:
        plain = request if job.kind == "plain" else request_for(Job("plain", job.port, 0, 0))
        await generator.closed_loop(plain, job.warmup, job.seconds)
    if job.kind == "silent":
        await generator.open_silent(request, 10)
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    result: dict[str, float] = {}
    if job.kind == "plain":
        result = await generator.closed_loop(request, job.count, job.seconds)
    elif job.kind == "rate":
        result = await generator.fixed_rate(request, job.count, job.rate)
    elif job.kind == "streams":
        result = await generator.all_at_once(request)
    elif job.kind == "silent":
        await generator.open_silent(request, job.count)
    print(json.dumps(result), flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    for connection in generator.connections:
        connection.close()


if __name__ == "__main__":
    try:
        uvloop.run(run(Job(**json.loads(sys.argv[1]))))
    except (WrongAnswerError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
