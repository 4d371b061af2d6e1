"""The listening side: HTTP/1.1 on a caller's socket, under uvicorn's Server, with the guard's limits inside it.

`protocol_factory(limits, on_refused=...)` makes the class for `uvicorn.Config(http=...)`. It replaces uvicorn's own
protocol because limits, disconnects and backpressure belong where the bytes are (docs/adr/0005). Speaks ASGI 3 (spec 2.4)
to any application; adds `scope["extensions"]["gateway.on_disconnect"]`, a function that takes a callback without
arguments. This file knows the clock and the order of turns; reader.py knows requests, turn.py answers, and none what they are about.
"""

import asyncio
import fcntl
import socket
import sys
import termios
import uuid
from collections.abc import Callable
from typing import Any, ClassVar

from uvicorn.config import Config
from uvicorn.protocols.utils import get_local_addr, get_remote_addr
from uvicorn.server import ServerState

from gateway.alarm import Alarm
from gateway.api.heads import Preamble, body_too_large, write_refusal
from gateway.api.limits import Limits
from gateway.api.reader import Enough, Reader
from gateway.api.turn import ClientDisconnected, Turn
from gateway.errors import CallerTimeout, GatewayError, ShuttingDown

__all__ = ["ClientDisconnected", "Limits", "protocol_factory"]

OnRefused = Callable[[GatewayError, str], None]

_LOOKS = 10  # at a reader who takes nothing, before he is cut off: how exactly the time is kept
_LAST_HEAD_SECONDS = 1.0  # for a head half read when the drain begins
_UNREAD_BYTES = 64 * 1024  # of body that the application has not taken: at this much, reading pauses
_UNSENT_BYTES = 128 * 1024  # that the kernel holds without having sent them; its own measure grows to 4 MB
_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", None)


def protocol_factory(limits: Limits | None = None, *, on_refused: OnRefused | None = None) -> type[asyncio.Protocol]:
    """Return the class for `uvicorn.Config(http=...)`.

    `on_refused` hears of each request that was refused before there was a scope, and the request id that the answer gave
    it; it is called after the answer was written, and must not block.
    """

    class Listening(Connection):
        __slots__ = ()
        _limits = limits or Limits()
        _hooks = Hooks(on_refused)
        _preamble = Preamble()

    return Listening


class Hooks:
    """What the assembly wants to be told."""

    def __init__(self, on_refused: OnRefused | None = None) -> None:
        self.on_refused = on_refused


class Connection(asyncio.Protocol):
    """One caller's connection: a parser, the turns it has begun, and one alarm for all deadlines.

    A caller is seen to leave by its EOF, for which reading must go on while an answer is under way. Pipelined requests
    are read ahead for as long; once `Limits.pipelined` of them wait, or much unread body, memory wins and reading pauses:
    from then until the next answer is complete, only a failing write shows that the caller has gone.
    """

    __slots__ = (
        "_alarm", "_app", "_app_state", "_body_since", "_current", "_cut_at", "_deaf", "_head_timed", "_incoming",
        "_lingering", "_loop", "_paused_at", "_read_by", "_reader", "_refusal", "_root_path", "_scope",
        "_server_state", "_taken", "_thrown_away", "_transport", "_unsent", "_unsent_since", "_waiting", "_write_by",
        "blocked", "draining", "slice_bytes", "tasks", "write",
    )  # fmt: skip
    _limits: ClassVar[Limits] = Limits()
    _hooks: ClassVar[Hooks] = Hooks()
    _preamble: ClassVar[Preamble] = Preamble()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._app = config.loaded_app
        self._root_path = config.root_path
        self._app_state = app_state
        self._server_state = server_state
        self._loop = _loop or asyncio.get_running_loop()
        self._alarm = Alarm(self._loop, self._ring)
        self._reader = Reader(self._limits, self)
        self._transport: asyncio.Transport = None  # type: ignore[assignment]

        self._current: Turn | None = None  # in service
        self._waiting: list[Turn] = []  # pipelined behind it; a deque, empty, takes 700 bytes
        self._incoming: Turn | None = None  # whose body is being read
        self._refusal: GatewayError | None = None  # what to say once all of them are answered
        self._deaf = False  # nothing more will be parsed
        self._lingering = False
        self._thrown_away = 0
        self.draining = False

        self._read_by: float | None = None
        self._write_by: float | None = None
        self._head_timed = False
        self._body_since: float | None = None
        self._paused_at: float | None = None
        self._unsent = self._taken = 0
        self._unsent_since = self._cut_at = 0.0
        self.blocked: asyncio.Event | None = None
        self.tasks = server_state.tasks
        self.write: Callable[[bytes | memoryview], None]
        self.slice_bytes = self._limits.write_buffer_bytes // 4

    # The transport's side.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first head. asyncio and uvloop have set TCP_NODELAY by now."""
        self._transport = transport
        self.write = transport.write
        transport.set_write_buffer_limits(high=self._limits.write_buffer_bytes - self.slice_bytes)
        if _NOTSENT_LOWAT is not None:
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, _UNSENT_BYTES)
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "server": get_local_addr(transport),
            "client": get_remote_addr(transport),
            "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
            "root_path": self._root_path,
        }
        self._server_state.connections.add(self)  # type: ignore[arg-type]
        self._time_head()

    def data_received(self, data: bytes) -> None:
        """Read, and look afterwards at what is unfinished: nothing is, as a rule."""
        if self._deaf:
            self._throw_away(len(data))
            return
        try:
            self._reader.feed(data)
        except GatewayError as error:
            self._stumble(error)
        except Enough:
            self._deaf = True
        if self._incoming is not None:
            self._mind_body()
        elif self._reader.in_head and self._current is None and not self._head_timed:
            self._time_head()
        if self._current is not None and self._full():
            self._pause()

    def eof_received(self) -> None:
        """Treat a half-close as a departure: a caller that wants its answer keeps its side open."""
        self._leave()
        self._close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Let go of everything, then tell who waits."""
        self._server_state.connections.discard(self)
        self._alarm.close()
        self._deaf = True
        self._reader.close()
        self._leave()
        self._unblock()

    def pause_writing(self) -> None:
        """Make send() wait, and give the caller its time to take something."""
        self.blocked = asyncio.Event()
        self._mind_unsent()

    def resume_writing(self) -> None:
        """Let send() go on."""
        self._unblock()
        if not self._transport.is_closing():
            self._write_by = None

    def shutdown(self) -> None:
        """Close if idle; else after the answer under way, or the head half read. Called by uvicorn when it drains."""
        self.draining = True
        if self._current is not None or self._lingering:
            return
        if self._reader.in_head and self._read_by is not None:
            self._read_by = min(self._read_by, self._loop.time() + _LAST_HEAD_SECONDS)
            self._schedule()
        else:
            self._close()

    def _unblock(self) -> None:
        event, self.blocked = self.blocked, None
        if event is not None:
            event.set()

    def _leave(self) -> None:
        turns = [self._current, *self._waiting]
        self._waiting.clear()
        self._refusal = None
        for turn in turns:
            if turn is not None:
                turn.leave()

    # The reader's side.

    def begin(self, scope: dict[str, Any], *, persistent: bool, expecting: bool) -> None:
        """Begin a turn at its head, so that the application can refuse a caller whose body is still to come."""
        self._head_timed = False
        scope.update(self._scope)
        if self._root_path:
            scope["path"] = self._root_path + scope["path"]
            scope["raw_path"] = self._root_path.encode() + scope["raw_path"]
        turn = Turn(self, scope, persistent=persistent, expecting=expecting)
        scope["state"] = self._app_state.copy()
        scope["extensions"] = {"gateway.on_disconnect": turn.on_disconnect}
        if self._current is None:
            self._start(turn)
        elif len(self._waiting) < self._limits.pipelined:
            self._waiting.append(turn)
        else:
            raise Enough
        self._incoming = turn

    def on_body(self, data: bytes) -> None:
        """Hand on a piece of body. Raises BodyTooLarge."""
        turn = self._incoming
        assert turn is not None
        if turn.received + len(data) > self._limits.body_bytes:
            raise body_too_large(self._limits)
        turn.feed(data)

    def end(self) -> None:
        """End a request's body."""
        turn, self._incoming = self._incoming, None
        assert turn is not None
        turn.end()
        if turn is self._current:
            self._read_by = None

    # The order of turns.

    def _start(self, turn: Turn) -> None:
        self._current = turn
        self._body_since = None
        self._read_by = None  # the alarm may ring for it all the same, and finds nothing overdue
        turn.run(self._loop, self._app)

    def _stumble(self, error: GatewayError) -> None:
        self._deaf = True
        turn, self._incoming = self._incoming, None
        if turn is not None:
            turn.fail(error)
            return
        last = self._waiting[-1] if self._waiting else self._current
        if last is None:
            self._refuse(error)
        elif last.persistent:
            self._refusal = error

    def answered(self, turn: Turn) -> None:
        """Go on to what comes after `turn`: the next request, a refusal, silence or the end."""
        self._server_state.total_requests += 1
        self._current = None
        if not turn.keeps or self.draining:
            self._end(linger=self._deaf or not turn.complete or self._paused_at is not None)
        elif self._waiting:
            self._start(self._waiting.pop(0))
            if not self._full():
                self._resume()
            if self._incoming is not None:
                self._mind_body()
        elif self._refusal is not None:
            self._refuse(self._refusal)
        elif self._deaf:
            self._end(linger=True)
        else:
            self._rest()

    def _rest(self) -> None:
        if self._paused_at is not None:
            self._resume()
        if self._reader.in_head:
            self._time_head()
        else:
            self._read_by = self._loop.time() + self._limits.idle_seconds
            self._schedule()

    def keeps(self, turn: Turn) -> bool:
        """Tell whether the connection can outlive the answer to `turn`, as far as is known when its head is written."""
        more = not self._deaf or bool(self._waiting) or self._refusal is not None
        return turn.persistent and turn.complete and more and not self.draining

    # Writing.

    def preamble(self) -> bytes:
        """Return the lines that every answer starts with."""
        preamble = self._preamble
        fields = self._server_state.default_headers
        if preamble.fields is not fields:
            preamble.renew(fields)
        return preamble.lines

    def abort(self) -> None:
        """Cut the connection: the caller must not take what it has for the whole."""
        self._transport.abort()

    def _refuse(self, error: GatewayError) -> None:
        self._refusal = None
        request_id = uuid.uuid4().hex
        self.write(write_refusal(error, request_id, self.preamble()))
        self._end(linger=True)
        if self._hooks.on_refused is not None:
            self._hooks.on_refused(error, request_id)

    def _end(self, *, linger: bool) -> None:
        self._deaf = True
        self._waiting.clear()
        self._incoming = None
        if not linger:
            self._close()
            return
        self._lingering = True
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._read_by = self._loop.time() + self._limits.linger_seconds
        self._schedule()
        self._resume()

    def _throw_away(self, size: int) -> None:
        self._thrown_away += size
        if not self._lingering:
            self._pause()
        elif self._thrown_away > self._limits.linger_bytes:
            self._close()

    def _close(self) -> None:
        self._read_by = None
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._mind_unsent()

    # Reading and its pauses.

    def took(self, turn: Turn) -> None:
        """Read on: the application has taken what there was of the body, or asks the caller for it."""
        if turn is self._current and turn is self._incoming:
            if not self._full():
                self._resume()
            self._mind_body()

    def _full(self) -> bool:
        if self._waiting:
            return len(self._waiting) >= self._limits.pipelined or self._waiting[-1].buffered > _UNREAD_BYTES
        return self._current is not None and self._current.buffered > _UNREAD_BYTES

    def _pause(self) -> None:
        if self._paused_at is None and not self._transport.is_closing():
            self._paused_at = self._loop.time()
            self._transport.pause_reading()
            self._read_by = None
            self._schedule()

    def _resume(self) -> None:
        if self._paused_at is None:
            return
        if self._body_since is not None:
            self._body_since += self._loop.time() - self._paused_at
        self._paused_at = None
        if not self._transport.is_closing():
            self._transport.resume_reading()

    # Time.

    def _time_head(self) -> None:
        self._head_timed = True
        self._read_by = self._loop.time() + self._limits.head_seconds
        self._schedule()

    def _mind_body(self) -> None:
        turn = self._incoming
        limits = self._limits
        assert turn is not None
        if turn is not self._current or self._paused_at is not None or (turn.expecting and not turn.received):
            return
        if self._body_since is None:
            self._body_since = self._loop.time()
        lasts = max(limits.body_grace_seconds, turn.received / limits.body_rate)
        self._read_by = self._body_since + min(limits.body_seconds, lasts)
        self._schedule()

    def _mind_unsent(self) -> None:
        now = self._loop.time()
        self._unsent = self._held()
        self._taken = 0
        self._unsent_since = now
        self._cut_at = now + self._limits.stall_seconds
        self._write_by = now + self._limits.stall_seconds / _LOOKS
        self._schedule()

    def _held(self) -> int:
        """Count what the caller's side has not confirmed. The buffer alone would hide a slow reader behind the kernel's."""
        held = self._transport.get_write_buffer_size()
        try:
            queued = fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):  # another system, or a socket that is closed
            return held
        return held + int.from_bytes(queued, sys.byteorder)

    def _mind_taking(self, now: float) -> None:
        limits = self._limits
        self._write_by = now + limits.stall_seconds / _LOOKS
        taken = self._unsent - self._held()
        if taken > self._taken:
            self._taken = taken
            lasts = max(limits.stall_seconds, taken / limits.answer_rate)
            self._cut_at = min(now + limits.stall_seconds, self._unsent_since + lasts)
        if now >= self._cut_at:
            self._write_by = None
            self.abort()

    def _schedule(self) -> None:
        read_by, write_by = self._read_by, self._write_by
        if read_by is None and write_by is None:
            self._alarm.clear()
        elif read_by is None or (write_by is not None and write_by < read_by):
            assert write_by is not None
            self._alarm.set(write_by)
        else:
            self._alarm.set(read_by)

    def _ring(self) -> None:
        now = self._loop.time()
        if self._write_by is not None and now >= self._write_by:
            self._mind_taking(now)
        if self._read_by is not None and now >= self._read_by:
            self._read_by = None
            self._overdue()
        self._schedule()

    def _overdue(self) -> None:
        if self._lingering:
            self._close()
        elif self._incoming is not None:
            self._stumble(CallerTimeout("The request's body came too slowly."))
        elif self._head_timed:
            slow = CallerTimeout("The request's head came too slowly.")
            self._stumble(ShuttingDown("The gateway is shutting down.") if self.draining else slow)
        else:
            self._close()
