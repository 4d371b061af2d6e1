"""An event loop whose clock is moved instead of waited for, so that a flow with backoffs and deadlines takes no time.

Sockets and threads are real and take no time on that clock: it stands still while anything is ready, and only when nothing
has come for a moment does it jump to the next timer. Everything that follows the loop's clock jumps with it:
`asyncio.sleep`, `asyncio.timeout`, `loop.call_at`. A module of tests says it in one line::

    anyio_backend = virtual_time

Whoever is given a clock must be given this one, `loop.time`. What another process does is not waited for.
"""

import asyncio
import selectors
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

import pytest

from tests.support import client

START = 10_000.0  # as on a machine that has been up for a while: nothing may rest on a clock that begins at 0
GRACE = 0.002  # real seconds for what is on its way over loopback
HELPED = 0.25  # the same while a thread works for the loop
PATIENCE = 20.0  # real seconds
HORIZON = 86_400.0  # virtual seconds

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class StandstillError(Exception):
    """Something is waited for that will not come; the message says where."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop, but for its clock.

    Raises StandstillError, out of whatever runs it, if the clock has stood still for `patience` real seconds, because
    nothing comes or because something comes for ever; or if it has gone a day, with timers that set themselves again.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self._wire = _Wire(patience)
        super().__init__(self._wire)

    def time(self) -> float:
        """Virtual seconds."""
        return self._wire.now

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """As ever; the clock gives the thread time."""
        future = super().run_in_executor(executor, func, *args)
        self._wire.helpers += 1
        future.add_done_callback(self._helped)
        return future

    async def shutdown_default_executor(self, *args: Any, **kwargs: Any) -> None:
        """As ever; the clock gives the threads time."""
        self._wire.helpers += 1
        await super().shutdown_default_executor(*args, **kwargs)
        self._helped()

    def _helped(self, _: object = None) -> None:
        self._wire.helpers -= 1


class _Wire(selectors.DefaultSelector):
    """Where the loop waits: until something comes or, if nothing does, until the clock has been moved by what it would wait."""

    def __init__(self, patience: float) -> None:
        super().__init__()
        self.now = START
        self.helpers = 0
        self._horizon = START + HORIZON
        self._patience = patience
        self._jumped_at = time.monotonic()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(self._real(timeout))
        if timeout and not found:
            self.now += timeout
            self._jumped_at = time.monotonic()
            if self.now > self._horizon:
                self._horizon += HORIZON
                raise StandstillError(_waiting("a day has gone by"))
        elif time.monotonic() - self._jumped_at >= self._patience:
            self._jumped_at = time.monotonic()
            raise StandstillError(_waiting(f"the clock has stood still for {self._patience:.1f} s"))
        return found

    def _real(self, timeout: float | None) -> float:
        if timeout is None:
            return self._patience
        if timeout <= 0:
            return 0
        return HELPED if self.helpers else GRACE


def _waiting(why: str) -> str:
    return "\n".join([f"{why}; waiting are:", *map(_place, asyncio.all_tasks())])


def _place(task: asyncio.Task[Any]) -> str:
    """Where a task waits: its coroutines, from the outermost on, each with its line."""
    places: list[str] = []
    awaited: Any = task.get_coro()
    while (frame := getattr(awaited, "cr_frame", None)) is not None:
        places.append(f"{awaited.__qualname__}:{frame.f_lineno}")
        awaited = awaited.cr_await
    return f"  {task.get_name()}: {' > '.join(places)}"


@pytest.fixture
def virtual_time(monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, Any]]:
    """The backend for anyio's tests. A caller on a raw socket, too, is as patient as the clock."""
    monkeypatch.setattr(client, "PATIENCE", HORIZON)
    return "asyncio", {"loop_factory": VirtualLoop}
