"""The sending half of a connection: how a request's body gets past the peer's flow control.

A body in memory goes out in pieces, each written from the callback that says the one before is gone, so that the write
deadline measures progress and no task is needed. Only a body that is itself streamed has a task. Knows nothing of
responses beyond telling the exchange which phase it is in.
"""

import asyncio
from collections.abc import AsyncIterable

import httpx

from gateway.tasks import spawn
from gateway.transport.body import BodyStream
from gateway.transport.request import Outgoing

PIECE = 256 * 1024
"""Bytes of body handed to the loop's transport at a time; each piece taken by the peer restarts the write deadline."""


class Sender:
    """Writes one request after another to one transport."""

    __slots__ = ("_blocked", "_rest", "_resumed", "_stream", "_task", "_transport")

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self._stream: BodyStream | None = None
        self._rest: memoryview | None = None
        self._task: asyncio.Task[None] | None = None
        self._resumed: asyncio.Future[None] | None = None
        self._blocked = False

    @property
    def busy(self) -> bool:
        """Some of the request has not been sent, or not been taken."""
        return self._blocked or self._rest is not None or self._task is not None

    def send(self, outgoing: Outgoing, stream: BodyStream) -> None:
        """Write the head and what the peer takes of the body; the rest follows by itself."""
        self._stream = stream
        content = outgoing.content
        if len(content) <= PIECE:
            self._transport.write(outgoing.head + content)
        else:
            self._rest = memoryview(content)
            self._transport.write(outgoing.head)
        if outgoing.source is not None:
            self._task = spawn(self._upload(outgoing.source, outgoing.length), name="upload")
        if self._blocked:
            stream.sending()
        else:
            self.advance()

    def block(self) -> None:
        """The transport holds bytes that the peer does not take."""
        self._blocked = True

    def advance(self) -> None:
        """The peer has taken what was written: write more of what is left, and say which phase that is."""
        self._blocked = False
        stream = self._stream
        if stream is None or stream.carrier is None:
            return
        while self._rest is not None and not self._blocked:
            piece, rest = self._rest[:PIECE], self._rest[PIECE:]
            self._rest = rest if len(rest) else None
            self._transport.write(piece)
        if self._blocked:
            stream.sending()
        elif self._task is not None:
            stream.preparing()
            if self._resumed is not None and not self._resumed.done():
                self._resumed.set_result(None)
        else:
            stream.sent()

    def stop(self) -> None:
        """Send nothing more."""
        self._stream = None
        self._rest = None
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _upload(self, source: AsyncIterable[bytes], length: int | None) -> None:
        left = length
        try:
            async for part in source:
                if part:
                    left = _subtract(left, len(part))
                    await self._put(part if length is not None else b"%x\r\n%b\r\n" % (len(part), part))
            if left:
                raise httpx.LocalProtocolError("the body is shorter than its content-length")
            if length is None:
                await self._put(b"0\r\n\r\n")
        except Exception as failure:  # noqa: BLE001  # whatever the source raises is for the reader of the response
            self._give_up(failure)
        else:
            self._task = None
            self.advance()

    async def _put(self, data: bytes) -> None:
        if self._transport.is_closing():
            raise httpx.WriteError("the connection broke")
        self._transport.write(data)
        if self._blocked:
            if self._stream is not None and self._stream.carrier is not None:
                self._stream.sending()
            self._resumed = asyncio.get_running_loop().create_future()
            await self._resumed

    def _give_up(self, failure: Exception) -> None:
        stream = self._stream
        if stream is not None and (carrier := stream.carrier) is not None:
            carrier.close()
            stream.fail(failure)


def _subtract(left: int | None, sent: int) -> int | None:
    if left is None:
        return None
    if sent > left:
        raise httpx.LocalProtocolError("the body is longer than its content-length")
    return left - sent
