"""What the gateway says of its replicas on the admin port, looked at five times a second."""

import asyncio
import re
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

from gateway.tasks import spawn
from tests.support.client import Caller

INTERVAL = 0.2  # seconds

_STATE = re.compile(r"^gateway_upstream_state\{(.+)\} 1\.0$", re.MULTILINE)
_ATTEMPTS = re.compile(r"^gateway_upstream_attempts_total\{(.+)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class Look(NamedTuple):
    """At one moment (monotonic seconds): the state of each replica, and the attempts there so far, by outcome."""

    at: float
    states: dict[str, str]
    attempts: dict[tuple[str, str], float]

    def failures(self, replica: str) -> float:
        """Attempts there that were not served."""
        return sum(count for (name, outcome), count in self.attempts.items() if name == replica and outcome != "served")


class Watch:
    """Looks while it is entered. `looks` are all so far."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._looked = asyncio.Event()
        self.looks: list[Look] = []

    async def __aenter__(self) -> Self:
        await self.look()
        self._task = spawn(self._go_on(), name="watch")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Look once more, when all is over."""
        self._task.cancel()
        await asyncio.wait([self._task])
        await self.look()

    async def wait_until(self, condition: Callable[[Look], bool]) -> Look:
        """The first look from now on of which `condition` holds."""
        while not condition(look := await self._next()):
            pass
        return look

    def last(self, until: float) -> Look:
        """The last look before that time."""
        return next(look for look in reversed(self.looks) if look.at <= until)

    async def look(self) -> Look:
        """One more."""
        async with await Caller.connect(self._port) as caller:
            await caller.send(b"GET /metrics HTTP/1.1\r\nhost: g\r\n\r\n")
            text = (await caller.response()).body.decode()
        states = {labels["replica"]: labels["state"] for labels in map(_labels, _STATE.findall(text))}
        attempts: dict[tuple[str, str], float] = {}
        for found, value in _ATTEMPTS.findall(text):
            labels = _labels(found)
            attempts[labels["replica"], labels["outcome"]] = float(value)
        self.looks.append(Look(time.monotonic(), states, attempts))
        return self.looks[-1]

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            await self.look()
            self._looked.set()

    async def _next(self) -> Look:
        self._looked.clear()
        await self._looked.wait()
        return self.looks[-1]


def _labels(text: str) -> dict[str, str]:
    return dict(_LABEL.findall(text))
