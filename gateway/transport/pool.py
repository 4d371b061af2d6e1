"""The connections to one origin: who has one, which are idle, and who waits.

The last one put back is the first one taken, so that the rest can grow old and go. Nothing here looks at all
connections for one request. A place is a count, derived from what exists: a connection that is gone, or a dial that
ended, cannot hold one. Must not know requests or HTTP.
"""

import asyncio
from collections import OrderedDict
from math import inf

import httpx

from gateway.alarm import Alarm
from gateway.transport.connection import Connection
from gateway.transport.deadlines import Deadlines
from gateway.transport.dial import Dialer
from gateway.transport.errors import DeadlineExceeded
from gateway.transport.request import Origin
from gateway.transport.settings import TransportSettings
from gateway.transport.waits import UNTOLD, Waits

Turn = asyncio.Future[Connection | None]
"""What a waiter gets: an idle connection, or None for a place to dial its own in, which is then counted as dialling."""


class Pool:
    """Connections to one origin, at most `settings.max_connections` of them, dials included."""

    def __init__(self, origin: Origin, settings: TransportSettings, dialer: Dialer, scratch: memoryview) -> None:
        self.origin = origin
        self._settings = settings
        self._dialer = dialer
        self._scratch = scratch
        self._loop = asyncio.get_running_loop()
        self._open: set[Connection] = set()
        self._idle: dict[Connection, None] = {}  # in the order they were put back
        self._dialling = 0
        self._acquiring = 0  # callers of `acquire`, whatever they wait for
        self._turns: OrderedDict[Turn, None] = OrderedDict()
        self._sweep = Alarm(self._loop, self._expire)
        self._closed = False

    @property
    def active(self) -> int:
        """Connections lent out or being made."""
        return len(self._open) - len(self._idle) + self._dialling

    @property
    def idle(self) -> int:
        """Open connections that nobody uses."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return len(self._turns)

    @property
    def unused(self) -> bool:
        """There is no connection, and nobody is about to have one."""
        return not (self._open or self._acquiring)

    def __repr__(self) -> str:
        return f"{self.origin}: {self.active} active, {self.idle} idle, {self.waiting} waiting"

    # Taking one.

    def take(self) -> Connection | None:
        """An idle connection, if there is one."""
        idle = self._idle
        while idle:
            connection = idle.popitem()[0]
            if connection.usable and connection.expires_at > (now := self._loop.time()) and connection.idle_until > now:
                return connection
            connection.close()
        return None

    async def acquire(self, deadlines: Deadlines, waits: Waits = UNTOLD, *, fresh: bool = False) -> Connection:
        """An idle connection, or a new one, now or in turn; `fresh`: a new one in any case.

        Raises httpx.PoolTimeout, ConnectTimeout, ConnectError and DeadlineExceeded.
        """
        patience = self._loop.time() + deadlines.pool
        self._acquiring += 1
        try:
            while True:
                connection = self._free(fresh=fresh)
                if connection is None and self._full:
                    with waits.waiting("pool"):
                        connection = await self._turn(patience, deadlines.total)
                elif connection is None:
                    self._dialling += 1
                if connection is None:
                    with waits.waiting("connect"):
                        return await self._dial(deadlines)
                if connection.usable and not fresh:
                    return connection
                connection.close()
        finally:
            self._acquiring -= 1

    def _free(self, *, fresh: bool) -> Connection | None:
        """A connection that has been used before; where there is none an idle one makes room for a new one."""
        if self._closed:
            raise RuntimeError("the engine is closed")
        connection = None if fresh else self.take()
        if connection is None and self._full and self._idle:
            next(iter(self._idle)).close()
        return connection

    @property
    def _full(self) -> bool:
        return len(self._open) + self._dialling >= self._settings.max_connections

    async def _turn(self, patience: float, total: float) -> Connection | None:
        turn: Turn = self._loop.create_future()
        self._turns[turn] = None
        at = min(patience, total)
        timer = None if at == inf else self._loop.call_at(at, self._give_up, turn, patience < total)
        try:
            return await turn
        except BaseException:
            self._pass_on(turn)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _give_up(self, turn: Turn, impatient: bool) -> None:
        if not turn.done():
            del self._turns[turn]
            turn.set_exception(
                httpx.PoolTimeout("no connection became free in time")
                if impatient
                else DeadlineExceeded("the request's deadline passed")
            )

    def _pass_on(self, turn: Turn) -> None:
        """The waiter is gone. What it may have been given in the same moment goes to the next."""
        self._turns.pop(turn, None)
        if turn.cancelled() or not turn.done() or turn.exception() is not None:
            return
        connection = turn.result()
        if connection is None:
            self._dialling -= 1
            self._admit()
        elif not connection.closed:
            self.put_back(connection)

    async def _dial(self, deadlines: Deadlines) -> Connection:
        """A new connection, in a place that is counted already."""
        connection = Connection(self, self._settings, self._scratch)
        at = min(self._loop.time() + deadlines.connect, deadlines.total)
        try:
            async with asyncio.timeout_at(None if at == inf else at):
                await self._dialer.dial(connection)
        except TimeoutError:
            if at < deadlines.total:
                raise httpx.ConnectTimeout("no connection in time") from None
            raise DeadlineExceeded("the request's deadline passed") from None
        except BaseException:
            connection.close()
            raise
        else:
            if not connection.closed:
                self._open.add(connection)
        finally:
            self._dialling -= 1
            self._admit()
        if self._closed:
            connection.close()
        return connection

    # Giving it back.

    def put_back(self, connection: Connection) -> None:
        """It is free: to the first in the queue, or to the idle ones."""
        now = self._loop.time()
        if self._closed or connection.expires_at <= now:
            connection.close()
            return
        while self._turns:
            turn, _ = self._turns.popitem(last=False)
            if not turn.done():
                turn.set_result(connection)
                return
        self._idle[connection] = None
        until = connection.idle_until = min(now + self._settings.keepalive_expiry, connection.expires_at)
        if self._sweep.at is None or until < self._sweep.at:
            self._sweep.set(until)

    def forget(self, connection: Connection) -> None:
        """It is closed; its place is free."""
        self._idle.pop(connection, None)
        self._open.discard(connection)
        self._admit()

    def _admit(self) -> None:
        while self._turns and not self._full:
            turn, _ = self._turns.popitem(last=False)
            if not turn.done():
                self._dialling += 1
                turn.set_result(None)

    def _expire(self) -> None:
        """Close what has been idle for too long, and what is too old."""
        now = self._loop.time()
        for connection in [connection for connection in self._idle if connection.idle_until <= now]:
            connection.close()
        if self._idle:
            self._sweep.set(min(connection.idle_until for connection in self._idle))

    def close(self) -> None:
        """Close every connection, and turn away whoever waits."""
        self._closed = True
        self._sweep.close()
        while self._turns:
            turn, _ = self._turns.popitem(last=False)
            if not turn.done():
                turn.set_exception(httpx.PoolTimeout("the engine was closed"))
        for connection in list(self._open):
            connection.fail(httpx.ReadError("the engine was closed"))
