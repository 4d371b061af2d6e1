"""A caller on a raw socket, who can be as wrong, slow or sudden as he likes.

Nothing is read ahead: what a test does not read stays in the socket, so that a caller who does not read is really one.
Every wait ends in an error after `PATIENCE` seconds, so that a hanging server fails a test and does not hang it.
"""

import asyncio
import contextlib
import socket
import struct
from typing import Any, NamedTuple, Self

import orjson

PATIENCE = 10.0


class Response(NamedTuple):
    """What came back. `fields` keeps order and repeats; `headers` is the last of each name."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes

    @property
    def headers(self) -> dict[str, str]:
        return dict(self.fields)

    @property
    def error(self) -> dict[str, Any]:
        """The OpenAI-shaped error, which must be well-formed."""
        assert self.headers["content-type"] == "application/json"
        assert self.headers["x-request-id"]
        error: dict[str, Any] = orjson.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


class Caller:
    """One connection. Leave it with `close`, `half_close` or `reset`, or as a context manager."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._loop = asyncio.get_running_loop()
        self._unread = b""

    @classmethod
    async def connect(cls, port: int, *, receive_buffer: int | None = None) -> Self:
        """Connect to 127.0.0.1. `receive_buffer`: bytes that the kernel takes in for a caller who does not read."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(sock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def send(self, *pieces: bytes) -> None:
        """Send each piece by itself, with the loop going round in between."""
        for piece in pieces:
            async with asyncio.timeout(PATIENCE):
                await self._loop.sock_sendall(self.sock, piece)
            await rounds(3)

    async def read_until(self, mark: bytes) -> bytes:
        """Read up to and with `mark`. Raises EOFError if the connection ends before."""
        while mark not in self._unread:
            await self._more()
        at = self._unread.index(mark) + len(mark)
        found, self._unread = self._unread[:at], self._unread[at:]
        return found

    async def read_exactly(self, size: int) -> bytes:
        """Read `size` bytes. Raises EOFError if the connection ends before."""
        while len(self._unread) < size:
            await self._more()
        found, self._unread = self._unread[:size], self._unread[size:]
        return found

    async def read_to_end(self) -> bytes:
        """Read until the other side closes. Raises ConnectionResetError if it does so with a reset."""
        with contextlib.suppress(EOFError):
            while True:
                await self._more()
        found, self._unread = self._unread, b""
        return found

    async def response(self, *, bodiless: bool = False) -> Response:
        """Read one answer, by its own framing. `bodiless`: it answers a HEAD."""
        head = (await self.read_until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split(" ")[1])
        fields = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in head[1:-2])]
        headers = dict(fields)
        if bodiless or status in {100, 204, 304}:
            body = b""
        elif "content-length" in headers:
            body = await self.read_exactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            body = await self._chunks()
        else:
            body = await self.read_to_end()
        return Response(status, fields, body)

    async def closed(self) -> bool:
        """Tell whether the other side has said all it will say, in good order. Waits for it."""
        return await self.read_to_end() == b""

    def half_close(self) -> None:
        """Say that nothing more will be sent, and keep listening."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Leave with a RST, as a process that is killed with unread data does."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Leave with a FIN (or a RST, where there is unread data)."""
        self.sock.close()

    async def _chunks(self) -> bytes:
        body = b""
        while size := int(await self.read_until(b"\r\n"), 16):
            body += await self.read_exactly(size)
            assert await self.read_exactly(2) == b"\r\n"
        assert await self.read_exactly(2) == b"\r\n"
        return body

    async def _more(self) -> None:
        async with asyncio.timeout(PATIENCE):
            data = await self._loop.sock_recv(self.sock, 65536)
        if not data:
            raise EOFError
        self._unread += data


async def rounds(times: int) -> None:
    """Let the event loop go round, sockets and all."""
    for _ in range(times):
        await asyncio.sleep(0)
