"""An upstream that does exactly what a test says, right or wrong: raw sockets and no HTTP library.

A script says what to do with the connections, in the order they come; each is a list of actions, and the last list is
used again for whatever connections come after it::

    async with ScriptedUpstream([read(), send(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nhi")]) as upstream:
        ... upstream.url, upstream.requests, upstream.open_connections

When its actions are done, a connection stays open and silent until the peer closes it or the test ends.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from gateway.tasks import spawn


@dataclass(frozen=True)
class Received:
    """A request as it came. Header names are in lower case; `raw` is the whole head, `body` is unchunked."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    raw: bytes

    def header(self, name: str) -> str | None:
        """The first of that name."""
        return next((value for key, value in self.headers if key == name), None)


@dataclass
class Peer:
    """One connection, as an action sees it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    upstream: "ScriptedUpstream"
    gone: bool = field(default=False)


Action = Callable[[Peer], Awaitable[None]]
Script = list[Action]


def read() -> Action:
    """Read one request and record it; ends the script where the peer closes instead."""

    async def act(peer: Peer) -> None:
        raw = await peer.reader.readuntil(b"\r\n\r\n")
        start, *lines = raw[:-4].decode("latin-1").split("\r\n")
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        fields = dict(headers)
        if fields.get("transfer-encoding") == "chunked":
            body = await _chunks(peer.reader)
        else:
            body = await peer.reader.readexactly(int(fields.get("content-length", "0")))
        method, path, _ = start.split(" ")
        peer.upstream.requests.append(Received(method, path, headers, body, raw))

    return act


def read_head() -> Action:
    """Read the head of a request, and leave its body where it is."""

    async def act(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")

    return act


def send(*pieces: bytes) -> Action:
    """Send, each piece so that a peer on the same loop reads it by itself."""

    async def act(peer: Peer) -> None:
        for piece in pieces:
            peer.writer.write(piece)
            await peer.writer.drain()
            for _ in range(3):  # the peer's turn: readable, read, woken
                await asyncio.sleep(0)

    return act


def reply(body: bytes = b"{}", *, status: str = "200 OK", headers: Iterable[str] = ()) -> Action:
    """Send a well-formed answer with a length."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers]
    return send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)


def wait_for(event: asyncio.Event) -> Action:
    """Do nothing until the test says so."""

    async def act(peer: Peer) -> None:
        await event.wait()

    return act


def stall() -> Action:
    """Do nothing more, not even read, until the test ends."""

    async def act(peer: Peer) -> None:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]  # WriteTransport here is a whole one
        await asyncio.Event().wait()

    return act


def wait_closed() -> Action:
    """Wait until the peer has closed."""

    async def act(peer: Peer) -> None:
        with contextlib.suppress(ConnectionError):
            while await peer.reader.read(65536):
                pass

    return act


def close() -> Action:
    """Close in order (FIN), once all that was sent is delivered."""

    async def act(peer: Peer) -> None:
        peer.writer.close()
        peer.gone = True

    return act


def reset() -> Action:
    """Close with a reset (RST)."""

    async def act(peer: Peer) -> None:
        sock = peer.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.writer.transport.abort()
        peer.gone = True

    return act


@contextlib.contextmanager
def blackhole() -> Iterator[str]:
    """The URL of a port that drops every attempt to connect: its queue is full, and nobody accepts."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(2):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def unused_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def forever(*actions: Action) -> Action:
    """Repeat the actions for as long as the connection lasts."""

    async def act(peer: Peer) -> None:
        while not peer.gone:
            for action in actions:
                await action(peer)

    return act


class ScriptedUpstream:
    """Listens on a free port of `host` while it is entered. `tls` makes it speak TLS."""

    def __init__(self, *scripts: Script, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Received] = []
        self.accepted = 0
        self.port = 0
        self._scripts = scripts
        self._host = host
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Its base, without a slash at the end."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    @property
    def open_connections(self) -> int:
        """Connections that neither side has closed, as far as has been noticed."""
        return len(self._tasks)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds, looking whenever a connection comes, goes or has sent a request."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self._host, 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = self._scripts[min(self.accepted, len(self._scripts) - 1)]
        self.accepted += 1
        task = spawn(self._serve(Peer(reader, writer, self), script), name="scripted upstream")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self._changed.set())

    async def _serve(self, peer: Peer, script: Script) -> None:
        try:
            for action in script:
                await action(peer)
                self._changed.set()
            if not peer.gone:
                await wait_closed()(peer)
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            peer.writer.transport.abort()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int((await reader.readuntil(b"\r\n"))[:-2], 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return body
