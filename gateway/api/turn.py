"""One request and its answer on a connection: ASGI's `receive` and `send`.

A turn holds what has been read of the body and what is known of the answer, and turns messages into bytes. It must not
know the parser, deadlines or other turns: the connection (protocol.py) feeds it, keeps time, and is told when the answer
is complete. Head and first body of an answer leave in one write, and every later message in one write too.
"""

import asyncio
import uuid
from collections.abc import Callable, Coroutine, MutableMapping
from typing import Any, Literal, Protocol

import structlog

from gateway.api.heads import AnswerHead, write_head, write_refusal
from gateway.errors import GatewayError, Internal, ShuttingDown

Message = MutableMapping[str, Any]
Application = Callable[..., Coroutine[Any, Any, None]]
Framing = Literal["chunked", "length", "close", "none"]

_CHUNK_HEADS = tuple(b"%x\r\n" % size for size in range(2048))

_log = structlog.get_logger("gateway.api")


class ClientDisconnected(OSError):
    """The caller has gone: nothing that is sent will arrive. Raised by `send()`, as ASGI 2.4 asks."""


class Port(Protocol):
    """What a turn needs of its connection."""

    blocked: asyncio.Event | None
    slice_bytes: int
    draining: bool
    tasks: set[asyncio.Task[None]]
    write: Callable[[bytes | memoryview], None]

    def preamble(self) -> bytes:
        """Lines that every answer starts with."""
        ...

    def keeps(self, turn: "Turn") -> bool:
        """Whether the connection can outlive the answer."""
        ...

    def took(self, turn: "Turn") -> None:
        """Body was taken, or is asked for."""
        ...

    def answered(self, turn: "Turn") -> None:
        """The answer is complete."""
        ...

    def abort(self) -> None:
        """Cut the connection."""
        ...


class Turn:
    """One request, from its head to the end of its answer.

    `persistent`: the caller would keep the connection. `complete`: the whole body has been read from the socket.
    `buffered`, `received`: bytes of body not yet taken by the application, and bytes read in all.
    `finished`: the answer has been written to its end. `gone`: the caller left before that.
    """

    # Defaults of the class, not set for each turn: most turns never touch most of them.
    gone = False
    keeps = False
    started = False
    finished = False
    complete = False
    buffered = 0
    received = 0
    _event: asyncio.Event | None = None
    _left: tuple[Callable[[], None], ...] = ()
    _fault: GatewayError | None = None
    _delivered = False
    _head: AnswerHead | None = None
    _framing: Framing = "none"
    _remaining = 0
    _last = False
    _flowing = False  # in the middle of a chunked body: another chunk may follow without further thought
    _torn = False

    def __init__(self, port: Port, scope: dict[str, Any], *, persistent: bool, expecting: bool) -> None:
        self._port = port
        self.scope: dict[str, Any] | None = scope
        self._chunks = scope["http_version"] == "1.1"
        self.persistent = persistent
        self.expecting = expecting
        self.bodiless = scope["method"] == "HEAD"
        self._pieces: list[bytes] = []

    # What the connection tells it.

    def feed(self, data: bytes) -> None:
        """Another piece of the body is here."""
        self._pieces.append(data)
        self.received += len(data)
        self.buffered += len(data)
        if self._event is not None:
            self._event.set()

    def end(self) -> None:
        """The body is complete."""
        self.complete = True
        if self._event is not None:
            self._event.set()

    def fail(self, fault: GatewayError) -> None:
        """The body will never be complete: `receive()` raises `fault`."""
        self._fault = fault
        self._wake()

    def leave(self) -> None:
        """The caller has gone before the answer was complete. Tells whoever asked for it, once."""
        if self.gone or self.finished:
            return
        self.gone = True
        self._flowing = False
        self._wake()
        callbacks, self._left = self._left, ()
        for callback in callbacks:
            callback()

    def _wake(self) -> None:
        if self._event is not None:
            self._event.set()

    # What the application calls.

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """Call `callback` once if the caller leaves before the answer is complete; now, if that has happened."""
        if self.gone:
            callback()
        elif not self.finished:
            self._left += (callback,)

    async def receive(self) -> Message:
        """ASGI's receive. Raises the GatewayError that ended the body: too large, too slow, malformed."""
        while not (self.gone or self.finished):
            if self._fault is not None:
                raise self._fault
            if self._pieces or (self.complete and not self._delivered):
                return self._take()
            if self.expecting and not self.complete and not self.started:
                self.expecting = False
                self._port.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                self._port.took(self)
            event = self._event
            if event is None:
                event = self._event = asyncio.Event()
            event.clear()
            await event.wait()
        return {"type": "http.disconnect"}

    def _take(self) -> Message:
        pieces = self._pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._pieces = []
        self.buffered = 0
        self._delivered = self.complete
        if not self.complete:
            self._port.took(self)
        return {"type": "http.request", "body": body, "more_body": not self.complete}

    async def send(self, message: Message) -> None:
        """ASGI's send: waits while the caller is slow. Raises ClientDisconnected, RuntimeError and ValueError."""
        port = self._port
        if self._flowing and port.blocked is None and message.get("more_body", False):
            body = message.get("body", b"")
            if 0 < len(body) < port.slice_bytes and message["type"] == "http.response.body":
                port.write(_chunk(body))
                return
        if self.gone:
            raise ClientDisconnected("The caller has gone.")
        if port.blocked is not None:
            await self._unblocked()
        payload = self._render(message)
        if len(payload) > port.slice_bytes:
            await self._pour(payload)
        elif payload:
            port.write(payload)
        if self._last:
            self._finish()

    async def _unblocked(self) -> None:
        while self._port.blocked is not None:
            await self._port.blocked.wait()
        if self.gone:
            raise ClientDisconnected("The caller has gone.")

    def _render(self, message: Message) -> bytes:
        kind = message["type"]
        if kind == "http.response.start" and self._head is None:
            status = message["status"]
            self._head = write_head(status, self._port.preamble(), message.get("headers", ()))
            self.bodiless = self.bodiless or status in {204, 304}
            return b""
        if kind != "http.response.body" or self._head is None or self.finished:
            raise RuntimeError(f"ASGI message {kind!r} is out of turn.")
        if self._torn:
            self._port.abort()
            raise ClientDisconnected("An earlier message was cut off in the middle.")
        last = not message.get("more_body", False)
        payload = self._frame(message.get("body", b""), last=last)
        self.started = True
        self._last = last
        return payload

    def _frame(self, body: bytes, *, last: bool) -> bytes:
        prefix = b"" if self.started else self._open(len(body), last=last)
        framing = self._framing
        if framing == "chunked":
            self._flowing = True
            return b"".join((prefix, _chunk(body) if body else b"", b"0\r\n\r\n" if last else b""))
        if framing == "none":
            return prefix
        if framing == "length":
            self._remaining -= len(body)
            if self._remaining < 0 or (last and self._remaining):
                raise RuntimeError("The answer's body is not as long as its content-length says.")
        return prefix + body if prefix else body

    def _open(self, size: int, *, last: bool) -> bytes:
        assert self._head is not None
        lines, length, closes = self._head
        self.keeps = not closes and self._port.keeps(self)
        line = b""
        if self.bodiless:
            self._framing = "none"
        elif length is not None:
            self._framing, self._remaining = "length", length
        elif last:
            self._framing, self._remaining = "length", size
            line = b"content-length: %d\r\n" % size
        elif self._chunks:
            self._framing = "chunked"
            line = b"transfer-encoding: chunked\r\n"
        else:
            self._framing = "close"
        return lines + line + (b"\r\n" if self.keeps else b"connection: close\r\n\r\n")

    async def _pour(self, payload: bytes) -> None:
        self._flowing = False
        self._torn = True  # a cancellation in here leaves half a chunk on the wire: nothing true can follow it
        view = memoryview(payload)
        size = self._port.slice_bytes
        for at in range(0, len(view), size):
            await self._unblocked()
            self._port.write(view[at : at + size])
        self._torn = False
        self._flowing = self._framing == "chunked"

    def _finish(self) -> None:
        self.finished = True
        self._flowing = False
        self._left = ()
        if self._event is not None:
            self._event.set()
        self._port.answered(self)

    # What becomes of the application.

    def run(self, loop: asyncio.AbstractEventLoop, app: Application) -> None:
        """Start the application on this turn."""
        # The scope holds on_disconnect and thereby the turn: letting go of it here spares the garbage collector a cycle.
        scope, self.scope = self.scope, None
        task = loop.create_task(app(scope, self.receive, self.send))
        self._port.tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._port.tasks.discard(task)
        fault = None if task.cancelled() else task.exception()
        if self.gone:
            return
        if self.finished:
            if fault is not None:
                _report("app_failed_after_answer", fault)
            return
        if self.started:
            _report("app_failed_mid_answer", fault)
            self._port.abort()
            return
        request_id = uuid.uuid4().hex
        error = self._error_for(task, fault, request_id)
        self.started = True
        self.keeps = False
        self._port.write(write_refusal(error, request_id, self._port.preamble(), bodiless=self.bodiless))
        self._finish()

    def _error_for(self, task: asyncio.Task[None], fault: BaseException | None, request_id: str) -> GatewayError:
        if isinstance(fault, GatewayError):
            return fault
        if task.cancelled() and self._port.draining:
            return ShuttingDown("The gateway is shutting down.")
        _report("app_failed", fault, request_id=request_id)
        return Internal(request_id)


def _chunk(body: bytes) -> bytes:
    size = len(body)
    head = _CHUNK_HEADS[size] if size < len(_CHUNK_HEADS) else b"%x\r\n" % size
    return b"".join((head, body, b"\r\n"))


def _report(event: str, fault: BaseException | None, **facts: str) -> None:
    where = ""
    traceback = fault.__traceback__ if fault is not None else None
    while traceback is not None:
        where = f"{traceback.tb_frame.f_globals.get('__name__', '')}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    error = type(fault).__name__ if fault is not None else "no answer"
    _log.error(event, error=error, where=where, **facts)
