"""Requests as bytes: prepared once per target where speed counts, rendered on the spot for any other httpx.Request.

Building an httpx.Request costs more than sending one, because URL, header names and header values are normalised again
for every call, though they never change. A Target does that once. Must not know connections or time.
"""

import ipaddress
import re
from collections.abc import AsyncIterable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import httpx

Fields = list[tuple[bytes, bytes]]

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BAD_VALUE = re.compile(rb"[\r\n\0]")
_PORTS = {"http": 80, "https": 443, "grpc": 8001, "grpcs": 8001}
_BODILESS = frozenset({"GET", "HEAD", "DELETE", "OPTIONS", "TRACE"})


class Origin(NamedTuple):
    """Where connections go, and what they are pooled by.

    `host` is what is looked up, and what a certificate must name; with an `address` nothing is looked up.
    """

    scheme: str
    host: str
    port: int
    address: str = ""

    @classmethod
    def of(cls, url: httpx.URL, address: str = "") -> "Origin":
        """The origin of an absolute URL, http, https, grpc or grpcs; `UnsupportedProtocol` for any other."""
        if url.scheme not in _PORTS or not url.host:
            raise httpx.UnsupportedProtocol("the URL must be absolute, and http, https, grpc or grpcs")
        return cls(url.scheme, url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme], address)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        place = f" at {self.address}" if self.address else ""
        return f"{self.scheme}://{host}:{self.port}{place}"


@dataclass(frozen=True)
class Target:
    """One method on one URL, with the headers that every request to it carries, rendered once.

    `headers` need no Host, Content-Length or Accept-Encoding. They may hold keys, so they are not in the repr.
    `address` is an IP address to connect to instead of looking up the URL's host, which stays what Host says and what a
    certificate must name. Only the gateway's own engine heeds it.
    """

    method: str
    url: httpx.URL
    headers: Fields = field(default_factory=list, repr=False)
    address: str | None = None
    origin: Origin = field(init=False, repr=False)
    prefix: bytes = field(init=False, repr=False)
    fields: Fields = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Render; `LocalProtocolError` where a header would break the request apart, `ValueError` for a bad address."""
        fields = _host_first(self.url, self.headers)
        address = "" if self.address is None else str(ipaddress.ip_address(self.address))
        object.__setattr__(self, "origin", Origin.of(self.url, address))
        object.__setattr__(self, "fields", fields)
        object.__setattr__(self, "prefix", _start_line(self.method, self.url) + _lines(fields))


class PreparedRequest(httpx.Request):
    """An httpx.Request made of parts that a Target has ready; what is particular to this call comes on top.

    It reads like any other (`headers`, `content`, `read`), but what is sent is fixed here: a change to `headers` later
    is not seen. `LocalProtocolError` where `extra` holds line breaks or NUL.
    """

    def __init__(self, target: Target, extra: Fields, body: bytes, extensions: dict[str, Any]) -> None:
        self.target = target
        self.extra = extra
        self.method = target.method
        self.url = target.url
        self.extensions = extensions
        self._content = body

    @cached_property
    def headers(self) -> httpx.Headers:  # type: ignore[override]
        """All that is sent, for whoever asks; the engine does not."""
        length = _length_field(self.method, self._content)
        return httpx.Headers([*self.target.fields, *self.extra, *length])

    @cached_property
    def stream(self) -> httpx.ByteStream:  # type: ignore[override]
        """The body as httpx's other transports want it."""
        return httpx.ByteStream(self._content)

    def head(self) -> bytes:
        """Start line and headers, up to and with the empty line."""
        extra = b"".join([b"%b: %b\r\n" % pair for pair in self.extra])
        lines = len(self.extra)
        if extra.count(b"\n") != lines or extra.count(b"\r") != lines or b"\0" in extra:
            raise httpx.LocalProtocolError("a header must not contain a line break or NUL")
        body = self._content
        if body or self.method not in _BODILESS:
            return b"%b%bcontent-length: %d\r\n\r\n" % (self.target.prefix, extra, len(body))
        return b"%b%b\r\n" % (self.target.prefix, extra)


class Outgoing:
    """A request ready for a connection. `content` is all of the body; `source` is set instead where it is streamed.

    `length` is what a streamed body has promised, None where it is sent in chunks.
    """

    __slots__ = ("bodiless", "close", "content", "head", "length", "origin", "source")

    def __init__(self, request: httpx.Request) -> None:
        self.source: AsyncIterable[bytes] | None = None
        self.length: int | None = None
        self.close = False
        self.bodiless = request.method == "HEAD"
        if isinstance(request, PreparedRequest):
            self.origin = request.target.origin
            self.head = request.head()
            self.content: bytes = request._content  # noqa: SLF001  # the property looks for what is always there
        else:
            self._render(request)

    def _render(self, request: httpx.Request) -> None:
        self.origin = Origin.of(request.url)
        stream = request.stream
        if isinstance(stream, httpx.ByteStream):
            self.content = b"".join(stream)
        elif isinstance(stream, AsyncIterable):
            self.content, self.source = b"", stream
        else:
            raise httpx.LocalProtocolError("the request's stream is not asynchronous")
        fields = self._framed(_host_first(request.url, request.headers.raw), request.method)
        self.close = any(name.lower() == b"connection" and b"close" in value.lower() for name, value in fields)
        self.head = _start_line(request.method, request.url) + _lines(fields) + b"\r\n"

    def _framed(self, fields: Fields, method: str) -> Fields:
        """The fields with exactly one way to tell where the body ends, and the one that fits what will be sent."""
        promised = [value for name, value in fields if name.lower() == b"content-length"]
        rest = [pair for pair in fields if pair[0].lower() not in {b"content-length", b"transfer-encoding"}]
        if self.source is None:
            return rest + _length_field(method, self.content)
        if not promised:
            return [*rest, (b"transfer-encoding", b"chunked")]
        if len(promised) > 1 or not promised[0].isdigit():
            raise httpx.LocalProtocolError("content-length must be one number")
        self.length = int(promised[0])
        return [*rest, (b"content-length", promised[0])]


def _length_field(method: str, content: bytes) -> Fields:
    return [(b"content-length", b"%d" % len(content))] if content or method not in _BODILESS else []


def _host_first(url: httpx.URL, given: Iterable[tuple[bytes, bytes]]) -> Fields:
    host = next((value for name, value in given if name.lower() == b"host"), url.netloc)
    rest = [pair for pair in given if pair[0].lower() not in {b"host", b"accept-encoding"}]
    return [(b"host", host), (b"accept-encoding", b"identity"), *rest]


def _start_line(method: str, url: httpx.URL) -> bytes:
    name = method.encode("ascii", "replace")
    if not _TOKEN.fullmatch(name):
        raise httpx.LocalProtocolError("the method is not a token")
    return b"%b %b HTTP/1.1\r\n" % (name, url.raw_path)


def _lines(fields: Fields) -> bytes:
    for name, value in fields:
        if not _TOKEN.fullmatch(name) or _BAD_VALUE.search(value):
            raise httpx.LocalProtocolError("a header name is not a token, or its value contains a line break or NUL")
    return b"".join([b"%b: %b\r\n" % pair for pair in fields])
