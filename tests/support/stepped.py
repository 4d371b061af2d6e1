"""An event loop that goes round when it is told to, by a clock that is set: for what happens in one and the same moment.

Where `virtual_time` asks what comes of a flow, this asks what comes of it if it is cut off after exactly so many rounds.
"""

import asyncio
import contextlib
from collections.abc import Iterator

START = 10_000.0


class SteppedLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop. `now`: its clock, in seconds, which only the test moves."""

    def __init__(self) -> None:
        self.now = START
        super().__init__()

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
    """A loop that is closed in the end, with whatever a test that fails has left in it."""
    loop = SteppedLoop()
    try:
        yield loop
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.settle()
        loop.close()
