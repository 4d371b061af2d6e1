"""One request and its answer on a connection: ASGI's `receive` and `send`.

A turn holds what has been read of the body and what is known of the answer, and turns messages into bytes. It must not
know the parser, deadlines or other turns: the connection (protocol.py) feeds it, keeps time, and is told when the answer
is complete. Head and first body of an answer leave in one write, and every later message in one write too.
"""

import asyncio
import uuid
from collections.abc import Callable, MutableMapping
from typing import Any, Literal, Protocol

import structlog

from gateway.api.heads import AnswerHead, write_head, write_refusal
from gateway.errors import GatewayError, Internal, ShuttingDown

Message = MutableMapping[str, Any]
Framing = Literal["chunked", "length", "close", "none"]

_log = structlog.get_logger("gateway.api")


class ClientDisconnected(OSError):
    """The caller has gone: nothing that is sent will arrive. Raised by `send()`, as ASGI 2.4 asks."""


class Port(Protocol):
    """What a turn needs of its connection."""

    blocked: asyncio.Event | None
    slice_bytes: int
    draining: bool

    def preamble(self) -> bytes:
        """Lines that every answer starts with."""
        ...

    def write(self, data: bytes | memoryview) -> None:
        """Write at once."""
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

    def release(self, task: asyncio.Task[None]) -> None:
        """The application's task has ended."""
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

    __slots__ = (
        "_delivered",
        "_event",
        "_fault",
        "_framing",
        "_head",
        "_last",
        "_left",
        "_pieces",
        "_port",
        "_remaining",
        "_torn",
        "bodiless",
        "buffered",
        "complete",
        "expecting",
        "finished",
        "gone",
        "keeps",
        "persistent",
        "received",
        "scope",
        "started",
        "task",
    )

    def __init__(self, port: Port, scope: dict[str, Any], *, persistent: bool, expecting: bool) -> None:
        self._port = port
        self.scope = scope
        self.persistent = persistent
        self.expecting = expecting
        self.bodiless: bool = scope["method"] == "HEAD"
        self.task: asyncio.Task[None] | None = None
        self._event: asyncio.Event | None = None
        self._left: tuple[Callable[[], None], ...] = ()
        self.gone = False

        self._pieces: list[bytes] = []
        self._fault: GatewayError | None = None
        self._delivered = False
        self.buffered = 0
        self.received = 0
        self.complete = False

        self._head: AnswerHead | None = None
        self._framing: Framing = "none"
        self._remaining = 0
        self._last = False
        self._torn = False
        self.keeps = False
        self.started = False
        self.finished = False

    # What the connection tells it.

    def feed(self, data: bytes) -> None:
        """Another piece of the body is here."""
        self._pieces.append(data)
        self.received += len(data)
        self.buffered += len(data)
        self._wake()

    def end(self) -> None:
        """The body is complete."""
        self.complete = True
        self._wake()

    def fail(self, fault: GatewayError) -> None:
        """The body will never be complete: `receive()` raises `fault`."""
        self._fault = fault
        self._wake()

    def leave(self) -> None:
        """The caller has gone before the answer was complete. Tells whoever asked for it, once."""
        if self.gone or self.finished:
            return
        self.gone = True
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
        if self.gone:
            raise ClientDisconnected("The caller has gone.")
        port = self._port
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
        if kind == "http.response.start":
            self._begin(message)
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

    def _begin(self, message: Message) -> None:
        if self._head is not None:
            raise RuntimeError("The answer has begun already.")
        status = message["status"]
        self._head = write_head(status, self._port.preamble(), message.get("headers", ()))
        self.bodiless = self.bodiless or status in {204, 304}

    def _frame(self, body: bytes, *, last: bool) -> bytes:
        prefix = b"" if self.started else self._open(len(body), last=last)
        framing = self._framing
        if framing == "chunked":
            tail = b"0\r\n\r\n" if last else b""
            return b"%b%x\r\n%b\r\n%b" % (prefix, len(body), body, tail) if body else prefix + tail
        if framing == "none":
            return prefix
        if framing == "length":
            self._remaining -= len(body)
            if self._remaining < 0 or (last and self._remaining):
                raise RuntimeError("The answer's body is not as long as its content-length says.")
        return prefix + body if prefix else body

    def _open(self, size: int, *, last: bool) -> bytes:
        head = self._head
        assert head is not None
        self.keeps = self._port.keeps(self) and not head.closes
        line = b""
        if self.bodiless:
            self._framing = "none"
        elif head.length is not None:
            self._framing, self._remaining = "length", head.length
        elif last:
            self._framing, self._remaining = "length", size
            line = b"content-length: %d\r\n" % size
        elif self.scope["http_version"] == "1.1":
            self._framing = "chunked"
            line = b"transfer-encoding: chunked\r\n"
        else:
            self._framing = "close"
        return b"%b%b%b" % (head.lines, line, b"\r\n" if self.keeps else b"connection: close\r\n\r\n")

    async def _pour(self, payload: bytes) -> None:
        self._torn = True  # a cancellation in here leaves half a chunk on the wire: nothing true can follow it
        view = memoryview(payload)
        size = self._port.slice_bytes
        for at in range(0, len(view), size):
            await self._unblocked()
            self._port.write(view[at : at + size])
        self._torn = False

    def _finish(self) -> None:
        self.finished = True
        self._left = ()
        self._wake()
        self._port.answered(self)

    # What becomes of the application.

    def run(self, task: asyncio.Task[None]) -> None:
        """Take over the application's task."""
        self.task = task
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self.task = None
        self._port.release(task)
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


def _report(event: str, fault: BaseException | None, **facts: str) -> None:
    where = ""
    traceback = fault.__traceback__ if fault is not None else None
    while traceback is not None:
        where = f"{traceback.tb_frame.f_globals.get('__name__', '')}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    error = type(fault).__name__ if fault is not None else "no answer"
    _log.error(event, error=error, where=where, **facts)
