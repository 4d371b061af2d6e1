"""What a request has to wait for before it can go out, told to whoever asked to know: it is nobody's fault and shows nowhere else.

Must not know who that is, nor clocks: theirs is the one that counts.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

import httpx


class Waits(Protocol):
    """The extension `waits` of a request."""

    def waiting(self, what: Literal["pool", "connect"]) -> AbstractContextManager[None]:
        """Entered while a connection of the pool is waited for, or while one is made."""


class _Untold:
    def waiting(self, _what: str) -> AbstractContextManager[None]:
        return nullcontext()


UNTOLD: Waits = _Untold()


def waits_of(request: httpx.Request) -> Waits:
    """Whom to tell."""
    told: Any = request.extensions.get("waits", UNTOLD)
    return told  # type: ignore[no-any-return]  # httpx's extensions hold anything
