"""How long each phase of one request may take, read once from the request's extensions.

httpx knows connect, pool, write and read. A stream of tokens needs reading split in two, for a model may think for a
minute before its first byte and must not pause for a minute after it; and a retry policy needs one end for everything.
Must not know sockets; absent limits are infinity here, so that nobody else has to ask.
"""

from collections.abc import Mapping
from math import inf
from typing import Any

_NONE: dict[str, float | None] = {}


class Deadlines:
    """Seconds per phase, and `total`, a moment of the loop's clock. Infinity where there is no limit."""

    __slots__ = ("connect", "first_byte", "idle", "pool", "total", "write")

    def __init__(self, extensions: Mapping[str, Any]) -> None:
        timeout: Mapping[str, float | None] = extensions.get("timeout") or _NONE
        read = timeout.get("read")
        self.connect = _seconds(timeout.get("connect"))
        self.pool = _seconds(timeout.get("pool"))
        self.write = _seconds(timeout.get("write"))
        self.first_byte = _seconds(timeout.get("first_byte", read))
        self.idle = _seconds(timeout.get("idle", read))
        self.total = _seconds(extensions.get("deadline"))


def _seconds(limit: float | None) -> float:
    return inf if limit is None else limit
