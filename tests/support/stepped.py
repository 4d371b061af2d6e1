"""An event loop that goes round when it is told to, by a clock that is set: for what happens in one and the same moment.

Where `virtual_time` asks what comes of a flow, this asks what comes of it if it is cut off after exactly so many rounds.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

START = 10_000.0


class SteppedLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop. `now`: its clock, in seconds, which only the test moves. `faults`: what nobody else was told of."""

    def __init__(self) -> None:
        self.now = START
        self.faults: list[dict[str, Any]] = []
        super().__init__()
        self.set_exception_handler(lambda _, fault: self.faults.append(fault))

    def time(self) -> float:
        """As the test has set it."""
        return self.now

    def step(self, rounds: int = 1) -> None:
        """Go round: whoever is ready, or due, goes on to where it waits next."""
        for _ in range(rounds):
            self.call_soon(self.stop)
            self.run_forever()

    def settle(self) -> None:
        """Go round for as long as anything a test does here can take, if the clock stands still."""
        self.step(20)


@contextlib.contextmanager
def stepped() -> Iterator[SteppedLoop]:
    """A loop that is closed in the end, with whatever is left in it."""
    loop = SteppedLoop()
    try:
        yield loop
        loop.settle()
        assert loop.faults == []
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.settle()
        loop.close()
