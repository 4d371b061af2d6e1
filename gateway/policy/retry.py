"""How often, and after what wait, one call may be tried again.

Decides from numbers alone: where to try again is the plan's business, whether it can be afforded the budget's. The law
of the wait is tenacity's exponential one, with chance as an argument. Must not know upstreams or calls.
"""

from math import inf

import msgspec
from tenacity import RetryCallState
from tenacity.wait import wait_exponential

from gateway.policy.breaker import Chance


class RetrySettings(msgspec.Struct, frozen=True):
    """What a call may do when an attempt fails. `base`, `cap`, `longest_wait`: seconds.

    `attempts`: all tries of a call, the first one too. `budget`: further attempts per caller's request, of the last
    ten seconds; `reserve`: how many more on top. `longest_wait`: the longest Retry-After that is waited for.
    """

    attempts: int = 3
    base: float = 0.25
    cap: float = 8.0
    budget: float = 0.2
    reserve: float = 10.0
    longest_wait: float = 5.0


class FullJitter(wait_exponential):
    """A wait between nothing and a bound that doubles with every attempt, up to a cap: what scatters a herd best."""

    def __init__(self, settings: RetrySettings, chance: Chance) -> None:
        super().__init__(multiplier=settings.base, max=settings.cap)
        self._chance = chance

    def __call__(self, retry_state: RetryCallState) -> float:
        """Seconds to wait after the attempt that the state tells of."""
        return super().__call__(retry_state) * self._chance()


def keep_to(asked: float, settings: RetrySettings, chance: Chance) -> float:
    """Seconds to wait for an upstream that asked for `asked` seconds; infinite where that is not worth waiting for.

    A little more than asked, and not the same for everybody: all who were sent away at once would come back at once.
    """
    return inf if asked > settings.longest_wait else asked + settings.base * chance()
