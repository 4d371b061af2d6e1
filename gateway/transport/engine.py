"""The engine: an httpx transport that costs microseconds.

httpx is the vocabulary of this project and its seam for tests; what moves the bytes underneath is ours, for the reasons
in docs/adr/0001-the-engine-under-httpx.md. This file is the way of one request through pool, connection and stream,
and the one free retry that stale keep-alive connections need. It must not know upstreams, models or tokens.
"""

import asyncio
import socket
from collections.abc import Mapping
from typing import Any

import httpx

from gateway.transport.body import BodyStream
from gateway.transport.deadlines import Deadlines
from gateway.transport.dial import Dialer, tls_context
from gateway.transport.errors import DeadlineExceeded
from gateway.transport.pool import Pool
from gateway.transport.request import Origin, Outgoing
from gateway.transport.resolver import DaemonThreads
from gateway.transport.settings import TransportSettings
from gateway.transport.waits import waits_of

READ_SIZE = 64 * 1024
RESOLVER_THREADS = 4

_VERSIONS = {"1.0": b"HTTP/1.0", "1.1": b"HTTP/1.1"}


class Engine(httpx.AsyncBaseTransport):
    """HTTP/1.1 over pooled connections, on the loop that first uses it.

    Of a request's extensions it reads `timeout` (seconds: connect, pool, write, first_byte, idle; read stands for the
    last two), `deadline` (a moment of the loop's clock for all of it) and `waits` (whom to tell of waiting). A response's extensions hold `http_version`,
    `reused`, `stale_retries`, and, in the loop's time, `sent_at` and `first_byte_at` (when the head was complete).
    """

    def __init__(self, settings: TransportSettings | None = None) -> None:
        self._settings = settings = settings or TransportSettings()
        self._pools: dict[Origin, Pool] = {}
        self._scratch = memoryview(bytearray(READ_SIZE))
        self._resolver = DaemonThreads(RESOLVER_THREADS)
        # With files of one's own a mistake must show at the start; otherwise plain HTTP need not pay for loading them.
        named = settings.ca_file or settings.client_cert
        self._context = tls_context(settings) if named else None
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send, and return when the head of the response is here.

        Raises httpx.TransportError, or one of the subclasses in `gateway.transport.errors`.
        """
        outgoing = Outgoing(request)
        deadlines = Deadlines(request.extensions)
        pool = self._pools.get(outgoing.origin) or self._open_pool(outgoing.origin)
        if deadlines.total <= asyncio.get_running_loop().time():
            raise DeadlineExceeded("the request's deadline had passed before it was sent")
        connection = pool.take() or await pool.acquire(deadlines, waits_of(request))
        reused, retries = connection.uses > 0, 0
        stream = connection.begin(outgoing, deadlines)
        try:
            await stream.head()
        except httpx.TransportError:
            if not stream.stale or outgoing.source is not None:
                raise
            # The pool may have been dropped, if this was the last of its connections.
            pool = self._pools.get(outgoing.origin) or self._open_pool(outgoing.origin)
            connection = await pool.acquire(deadlines, waits_of(request), fresh=True)
            reused, retries = False, 1
            stream = connection.begin(outgoing, deadlines)
            await stream.head()
        return _response(stream, reused, retries)

    async def aclose(self) -> None:
        """Close every connection; requests that are under way fail."""
        self._closed = True
        for pool in self._pools.values():
            pool.close()
        self._resolver.shutdown(wait=False, cancel_futures=True)
        await asyncio.sleep(0)

    @property
    def pools(self) -> Mapping[Origin, Pool]:
        """By origin; for metrics (`active`, `idle`, `waiting`)."""
        return self._pools

    def __repr__(self) -> str:
        return f"<Engine [{', '.join(map(repr, self._pools.values()))}]>"

    def _open_pool(self, origin: Origin) -> Pool:
        if self._closed:
            raise RuntimeError("the engine is closed")
        if origin.scheme not in ("http", "https"):
            raise httpx.UnsupportedProtocol("the engine speaks HTTP alone")
        self._drop_unused()
        if origin.scheme == "https" and self._context is None:
            self._context = tls_context(self._settings)
        context = self._context if origin.scheme == "https" else None
        dialer = Dialer(origin, self._resolver, context)
        pool = self._pools[origin] = Pool(origin, self._settings, dialer, self._scratch)
        return pool

    def _drop_unused(self) -> None:
        """Addresses come and go; what remains of those that went is dropped when the next one comes."""
        for origin in [origin for origin, pool in self._pools.items() if pool.unused]:
            self._pools.pop(origin).close()


def open_transport(settings: TransportSettings) -> httpx.AsyncBaseTransport:
    """The transport that the settings ask for."""
    if settings.engine == "own":
        return Engine(settings)
    limits = httpx.Limits(
        max_connections=settings.max_connections,
        max_keepalive_connections=settings.max_connections,
        keepalive_expiry=settings.keepalive_expiry,
    )
    return httpx.AsyncHTTPTransport(
        verify=tls_context(settings),
        trust_env=False,
        limits=limits,
        proxy=settings.proxy,
        socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
    )


def _response(stream: BodyStream, reused: bool, retries: int) -> httpx.Response:
    extensions: dict[str, Any] = {
        "http_version": _VERSIONS[stream.version],
        "reused": reused,
        "stale_retries": retries,
        "sent_at": stream.sent_at,
        "first_byte_at": stream.first_byte_at,
    }
    return httpx.Response(stream.status, headers=_Headers(stream.headers), stream=stream, extensions=extensions)


class _Headers(httpx.Headers):
    """Headers made of what the parser vouches for: httpx looks at the type of each name and value, which costs 4 us."""

    def __init__(self, fields: list[tuple[bytes, bytes]]) -> None:
        self._list = [(name, name.lower(), value) for name, value in fields]
        self._encoding = None
