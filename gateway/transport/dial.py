"""How a connection comes to be: a name, an address, a TCP handshake, and TLS where the scheme says so.

Neither loop does all of this alike (uvloop has no happy eyeballs), and their failures do not say which step it was, so
the steps are taken here one by one. Names are resolved by threads of our own: a slow resolver must not hold up whoever
else uses the loop's. Must not know pools or requests.
"""

import asyncio
import contextlib
import errno
import ipaddress
import itertools
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any

import certifi
import httpx

from gateway.tasks import spawn
from gateway.transport.errors import ResolveError, TlsError
from gateway.transport.request import Origin
from gateway.transport.settings import TransportSettings

STAGGER = 0.25
"""Seconds that one address may take before the next is tried beside it (RFC 8305's recommendation)."""

Address = tuple[socket.AddressFamily, Any]


def tls_context(settings: TransportSettings) -> ssl.SSLContext:
    """The context that all connections share. Raises OSError with the file's name where one can't be used.

    Built by hand: `ssl.create_default_context` looks at the environment for a key log and for other authorities.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        with _naming("ca_file", settings.ca_file):
            context.load_verify_locations(settings.ca_file or certifi.where())
    if settings.client_cert is not None:
        with _naming("client_cert, client_key", settings.client_cert, settings.client_key):
            context.load_cert_chain(settings.client_cert, settings.client_key)
    return context


@contextlib.contextmanager
def _naming(setting: str, *files: str | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # ssl's do not tell which file it was
        number = errno.EINVAL if isinstance(error, ssl.SSLError) else error.errno
        raise OSError(number, f"{setting}: {_words(error)}", " and ".join(filter(None, files))) from None


class Dialer:
    """Makes connections to one origin. `resolver` runs getaddrinfo; `context` is None for plain HTTP."""

    def __init__(self, origin: Origin, resolver: Executor, context: ssl.SSLContext | None) -> None:
        self._origin = origin
        self._resolver = resolver
        self._context = context
        self._literal = _literal(origin.address or origin.host, origin.port)

    async def dial(self, connection: asyncio.BaseProtocol) -> None:
        """Connect `connection`. Raises httpx.ConnectError or ConnectTimeout; cancelled, it leaves nothing open."""
        addresses = self._literal or await self._resolve()
        sock = await _connect(addresses)
        loop = asyncio.get_running_loop()
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            name = self._origin.host if self._context is not None else None
            await loop.create_connection(lambda: connection, sock=sock, ssl=self._context, server_hostname=name)
        except OSError as error:
            sock.close()
            raise TlsError(f"TLS failed: {_words(error)}") from error
        except BaseException:
            sock.close()
            raise

    async def _resolve(self) -> list[Address]:
        loop = asyncio.get_running_loop()
        lookup: Callable[..., list[Any]] = socket.getaddrinfo
        try:
            found = await loop.run_in_executor(
                self._resolver, lookup, self._origin.host, self._origin.port, socket.AF_UNSPEC, socket.SOCK_STREAM
            )
        except (OSError, UnicodeError) as error:
            raise ResolveError("the host name could not be resolved") from error
        addresses = [(family, address) for family, _, _, _, address in found]
        return _interleave(addresses)


async def _connect(addresses: list[Address]) -> socket.socket:
    """Race the addresses, each starting when the one before has failed or taken its time."""
    if len(addresses) == 1:
        return _winner([await _attempt(addresses[0])])
    waiting, racing = deque(addresses), set[asyncio.Task[socket.socket | OSError]]()
    results: list[socket.socket | OSError] = []
    try:
        while (waiting or racing) and not any(isinstance(result, socket.socket) for result in results):
            if waiting:
                racing.add(spawn(_attempt(waiting.popleft()), name="connect"))
            patience = STAGGER if waiting else None
            done, _ = await asyncio.wait(racing, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            racing -= done
            results += [attempt.result() for attempt in done]
        return _winner(results)
    except BaseException:
        for result in results:
            _discard(result)
        raise
    finally:
        for attempt in racing:
            if not attempt.cancel() and not attempt.cancelled():
                _discard(attempt.result())


async def _attempt(address: Address) -> socket.socket | OSError:
    try:
        sock = socket.socket(address[0], socket.SOCK_STREAM)
    except OSError as error:
        return error
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address[1])
    except OSError as error:
        sock.close()
        return error
    except BaseException:
        sock.close()
        raise
    return sock


def _winner(results: list[socket.socket | OSError]) -> socket.socket:
    sockets = [result for result in results if isinstance(result, socket.socket)]
    for late in sockets[1:]:
        late.close()
    if sockets:
        return sockets[0]
    errors = [result for result in results if isinstance(result, OSError)]
    error = errors[0]
    kind = httpx.ConnectTimeout if all(isinstance(e, TimeoutError) for e in errors) else httpx.ConnectError
    raise kind(f"no connection: {_words(error)}") from error


def _discard(result: socket.socket | OSError) -> None:
    if isinstance(result, socket.socket):
        result.close()


def _literal(host: str, port: int) -> list[Address]:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return []
    if address.version == 4:
        return [(socket.AF_INET, (host, port))]
    return [(socket.AF_INET6, (host, port, 0, 0))]


def _interleave(addresses: list[Address]) -> list[Address]:
    """Alternate families, beginning with the resolver's favourite."""
    first = [address for address in addresses if address[0] == addresses[0][0]]
    other = [address for address in addresses if address[0] != addresses[0][0]]
    pairs = itertools.zip_longest(first, other)
    return [address for pair in pairs for address in pair if address is not None]


def _words(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return str(getattr(error, "verify_message", "") or error.reason or type(error).__name__)
    return os.strerror(error.errno) if error.errno else type(error).__name__
