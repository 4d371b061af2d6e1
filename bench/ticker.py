"""A clock that ticks thousands of times a second.

Event loops count in milliseconds, so a timer of theirs would send requests in bursts. The kernel's timerfd counts in
nanoseconds, and a loop reads it as it reads a socket. Python wraps it from 3.13 on; until then, ctypes does.
"""

import asyncio
import ctypes
import os
import struct
import time
from collections.abc import Callable

_NONBLOCK = 0o4000
_libc = ctypes.CDLL(None, use_errno=True)


class Ticker:
    """Calls `tick(due)` `rate` times a second, with the time at which that tick was due (monotonic seconds)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rate: float, tick: Callable[[float], None]) -> None:
        self._loop = loop
        self._tick = tick
        self._period = round(1e9 / rate)
        self._fd = _libc.timerfd_create(time.CLOCK_MONOTONIC, _NONBLOCK)
        self._ticks = 0
        self._began = time.monotonic_ns()
        seconds, rest = divmod(self._period, 1_000_000_000)
        if self._fd < 0 or _libc.timerfd_settime(self._fd, 0, struct.pack("@4q", seconds, rest, seconds, rest), None):
            raise OSError(ctypes.get_errno(), "timerfd")
        loop.add_reader(self._fd, self._read)

    def stop(self) -> None:
        """No tick after this one."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> None:
        (expired,) = struct.unpack("@Q", os.read(self._fd, 8))
        for _ in range(expired):
            if self._fd < 0:
                return
            self._ticks += 1
            self._tick((self._began + self._ticks * self._period) / 1e9)
