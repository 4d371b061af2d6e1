"""Callers who ask for an answer at even times, plain and streamed in turn, and keep whatever they are told.

What is late is late by the time at which it was due, so that a pause is not hidden by the calls that were not made in it.
"""

import asyncio
import itertools
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import orjson

from gateway.tasks import spawn
from tests.failover.replica import WORDS
from tests.support.client import Caller, Response
from tests.support.stage import chat, request

CALLERS = 100  # enough that calls go on being made while some hang
TIMEOUT = 4.0  # seconds that a call has, as it says itself

_NOTHING = Response(0, [], b"")


@dataclass(frozen=True)
class Answer:
    """What came of one call. Times are monotonic seconds; `response` has status 0 where none came."""

    due: float
    sent: float
    ended: float
    stream: bool
    response: Response

    @property
    def lateness(self) -> float:
        """Seconds from when it was due to its end."""
        return self.ended - self.due

    @property
    def is_whole(self) -> bool:
        """It was served, to the last word."""
        body = self.response.body
        return self.response.status == 200 and body.count(b"word ") == WORDS and self.stream == (b"[DONE]" in body)

    @property
    def was_cut(self) -> bool:
        """It had begun, and was ended by an error in-band: nobody else could have gone on with it."""
        body = self.response.body
        return self.stream and self.response.status == 200 and b"word " in body and b'data: {"error"' in body

    @property
    def attempts(self) -> int:
        """How many the gateway says it took."""
        return int(self.response.headers.get("x-gateway-attempts", 0))

    def is_from(self, name: str) -> bool:
        """The replica of this name has served it."""
        return b'"model":"%b"' % name.encode() in self.response.body


class Load:
    """So many calls a second while it is entered. `calls`: how many have been sent; `answers`: what came of them, by when they ended."""

    def __init__(self, port: int, rate: float) -> None:
        self._port = port
        self._rate = rate
        self._numbers = itertools.count()
        self._began_at = 0.0
        self._leaving = False
        self._tasks: list[asyncio.Task[None]] = []
        self.calls = 0
        self.answers: list[Answer] = []

    async def __aenter__(self) -> Self:
        self._began_at = time.monotonic()
        self._tasks = [spawn(self._call_and_call(), name="caller") for _ in range(CALLERS)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what is open."""
        self._leaving = True
        await asyncio.gather(*self._tasks)

    async def go_on(self, seconds: float) -> None:
        """For so long. A fault of the callers' own is raised here."""
        done, _ = await asyncio.wait(self._tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def _call_and_call(self) -> None:
        while not self._leaving:
            async with await Caller.connect(self._port) as caller:
                while await self._call(caller):
                    pass

    async def _call(self, caller: Caller) -> bool:
        """One call, when it is due. False if there is to be no other on this connection."""
        number = next(self._numbers)
        due = self._began_at + number / self._rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        stream = number % 2 == 1
        sent = time.monotonic()
        self.calls += 1
        try:
            await caller.send(_REQUESTS[stream])
            response = await caller.response()
        except (OSError, EOFError, TimeoutError):
            response = _NOTHING
        self.answers.append(Answer(due, sent, time.monotonic(), stream, response))
        return response is not _NOTHING and not self._leaving


def _request(stream: bool) -> bytes:
    return request(orjson.dumps(chat(stream=stream)), x_request_timeout_ms=str(round(TIMEOUT * 1000)))


_REQUESTS = {stream: _request(stream) for stream in (False, True)}


def percentile(values: Iterable[float], percent: int) -> float:
    """The value that `percent` of them do not pass; NaN where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else math.nan


def steady_percentile(answers: Sequence[Answer], percent: int) -> float:
    """The percentile of lateness in the median second: a second in which the machine was elsewhere counts for one."""
    seconds = itertools.groupby(sorted(answers, key=lambda answer: answer.due), key=lambda answer: int(answer.due))
    each = [percentile((answer.lateness for answer in second), percent) for _, second in seconds]
    return percentile(each, 50)
