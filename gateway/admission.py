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
        self._turns: OrderedDict[asyncio.Future[Place], Callable[[Place], bool]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def has_room(self) -> bool:
        """Whether one more may wait."""
        return len(self._turns) < self._settings.queue

    async def turn(self, deadline: float, will_do: Callable[[Place], bool] = lambda _: True) -> Place:
        """Wait for a place that `will_do`.

        Raises Overloaded where there are too many, or none came in time; TimeoutError at `deadline` (the loop's time).
        """
        if not self.has_room:
            raise _overloaded()
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[Place] = loop.create_future()
        self._turns[turn] = will_do
        patience = loop.time() + self._settings.wait
        timer = loop.call_at(min(patience, deadline), self._give_up, turn, deadline < patience)
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
        """Give `place` to whoever has waited longest of those for whom it will do; False if there is nobody."""
        for turn, will_do in self._turns.items():
            if not turn.done() and will_do(place):
                del self._turns[turn]
                turn.set_result(place)
                return True
        return False

    def _give_up(self, turn: asyncio.Future[Place], late: bool) -> None:
        if not turn.done():
            del self._turns[turn]
            turn.set_exception(TimeoutError() if late else _overloaded())


def _overloaded() -> Overloaded:
    return Overloaded("The upstream has as many calls as it can take. Come back in a moment.")
