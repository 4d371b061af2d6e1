"""The queue for a place at an upstream whose replicas have as many calls as they may have.

Short, first in first out, and bounded in length and time: a call that can't be served soon is better told so at once, and
what waits here must hold up nobody who wants another upstream. Must not know what a place is.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from gateway.errors import Overloaded

Place = TypeVar("Place")


class ConcurrencySettings(msgspec.Struct, frozen=True):
    """Calls at once at each replica; how many more may wait for one at the upstream, and for how many seconds."""

    limit: int = 1000
    queue: int = 100
    wait: float = 1.0


class Queue(Generic[Place]):
    """Who waits for a place, in the order they came. `give_back` takes a place that nobody has a use for any more."""

    __slots__ = ("_give_back", "_settings", "_turns")

    def __init__(self, settings: ConcurrencySettings, give_back: Callable[[Place], None]) -> None:
        self._settings = settings
        self._give_back = give_back
        self._turns: OrderedDict[asyncio.Future[Place], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._turns)

    async def turn(self, deadline: float) -> Place:
        """Wait for a place, until `deadline` (the loop's time) at the latest. Raises Overloaded."""
        if len(self._turns) >= self._settings.queue:
            raise _overloaded()
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[Place] = loop.create_future()
        self._turns[turn] = None
        timer = loop.call_at(min(loop.time() + self._settings.wait, deadline), self._give_up, turn)
        try:
            return await turn
        except asyncio.CancelledError:
            self._turns.pop(turn, None)
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._give_back(turn.result())  # it was given in the same moment
            raise
        finally:
            timer.cancel()

    def hand(self, place: Place) -> bool:
        """Give `place` to whoever has waited longest; False if nobody waits."""
        while self._turns:
            turn, _ = self._turns.popitem(last=False)
            if not turn.done():
                turn.set_result(place)
                return True
        return False

    def _give_up(self, turn: asyncio.Future[Place]) -> None:
        if not turn.done():
            del self._turns[turn]
            turn.set_exception(_overloaded())


def _overloaded() -> Overloaded:
    return Overloaded("The upstream has as many calls as it can take. Come back in a moment.")
