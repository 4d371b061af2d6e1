"""What a request's head must be, and how an answer's head is written.

Pure functions over bytes: no sockets, no clock. httptools (llhttp, strict) has refused broken syntax before this file
sees a head; here is what it lets pass: versions, targets, and fields that may come only once or only in one form. Must
not know connections or applications.
"""

import http
import re
from collections.abc import Iterable
from urllib.parse import unquote

from gateway.api.limits import Limits
from gateway.errors import BodyTooLarge, CallerError, GatewayError, HeadTooLarge, UrlTooLong

Fields = list[tuple[bytes, bytes]]

# Each of these decides who the request is from, where it goes or where it ends: given twice, two readers could differ.
_ONCE = frozenset((b"host", b"authorization", b"content-length", b"transfer-encoding", b"expect"))
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%\-]+(:[0-9]*)?|\[[0-9A-Fa-f:.]+\](:[0-9]*)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TOKEN = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~\-]+")
_targets: dict[bytes, tuple[str, bytes, bytes]] = {}  # an API has few paths, and each is asked for a million times
_CONTROL_BYTES = bytes(byte for byte in (*range(32), 127) if byte != 9)


def malformed(message: str, *, code: str = "malformed_request") -> CallerError:
    """Return the 400 for what is not a request that this server reads."""
    return CallerError(message, code=code)


def check_size(url: bytes, headers: Fields, limits: Limits) -> None:
    """Raise HeadTooLarge if a head is over `head_bytes`, as it was on the wire or a few spaces less."""
    if len(url) + sum(len(name) + len(value) + 4 for name, value in headers) > limits.head_bytes:
        raise HeadTooLarge(f"The request's head is over {limits.head_bytes} bytes.")


def read_target(url: bytes, limits: Limits) -> tuple[str, bytes, bytes]:
    """Split an origin-form target into path (escapes decoded), raw path and query.

    Raises UrlTooLong, or CallerError for any other form and for control characters.
    """
    known = _targets.get(url)
    if known is not None:
        return known
    if len(url) > limits.url_bytes:
        raise UrlTooLong(f"The request's URL is over {limits.url_bytes} bytes.")
    if not url.startswith(b"/") or b"#" in url or not url.isascii():
        raise malformed("The request's target must be a path.")
    raw_path, _, query = url.partition(b"?")
    path = raw_path.decode("ascii")
    if "%" in path:
        path = unquote(path)
        if _CONTROL.search(path):
            raise malformed("The request's path holds a control character.")
    target = path, raw_path, query
    if not query and len(url) < 64 and len(_targets) < 256:
        _targets[url] = target
    return target


Demands = tuple[bool, bool, bytes | None]


def read_demands(version: str, headers: Fields, limits: Limits, known_host: bytes | None) -> Demands:
    """Check what llhttp does not judge; tell whether the body will be too large, if a 100 is expected, and the host.

    `known_host` is one that has passed before.

    Raises CallerError (400) or HeadTooLarge (431).
    """
    if version not in {"1.1", "1.0"}:
        raise malformed("Only HTTP/1.1 and HTTP/1.0 are spoken here.")
    if len(headers) > limits.head_fields:
        raise HeadTooLarge(f"The request has more than {limits.head_fields} header fields.")
    fields = dict(headers)
    if len(fields) != len(headers):
        _refuse_twice(headers)
    host = fields.get(b"host")
    if host is None or host != known_host:
        _check_host(host, version)
    length = fields.get(b"content-length")
    oversized = length is not None and int(length) > limits.body_bytes
    if length is None and b"transfer-encoding" in fields:
        _check_coding(fields[b"transfer-encoding"], version)
    expects = b"expect" in fields and version == "1.1" and fields[b"expect"].lower() == b"100-continue"
    return oversized, expects, host


def body_too_large(limits: Limits) -> BodyTooLarge:
    """Return the 413, whether the length was announced or found out."""
    return BodyTooLarge(f"The request's body is over {limits.body_bytes} bytes.")


def _refuse_twice(headers: Fields) -> None:
    names = [name for name, _ in headers if name in _ONCE]
    for name in _ONCE:
        if names.count(name) > 1:
            code = "invalid_host" if name == b"host" else "malformed_request"
            raise malformed(f"The header {name.decode()} is given twice.", code=code)


def _check_coding(coding: bytes, version: str) -> None:
    if version != "1.1" or coding.lower() != b"chunked":
        raise malformed("The only transfer encoding spoken here is chunked, in HTTP/1.1.")


def _check_host(host: bytes | None, version: str) -> None:
    if host is None:
        if version == "1.1":
            raise malformed("The Host header is missing.", code="invalid_host")
    elif not _HOST.fullmatch(host):
        raise malformed("The Host header is not a host name and port.", code="invalid_host")


def _status_line(status: int) -> bytes:
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


_STATUS_LINES = {status: _status_line(status) for status in range(200, 600)}
_OURS = frozenset((b"content-length", b"transfer-encoding", b"connection"))
_prefixes: dict[bytes, bytes] = {}  # name -> name and colon, for names that have been found good

AnswerHead = tuple[bytes, int | None, bool]


def write_head(status: int, preamble: bytes, headers: Iterable[tuple[bytes, bytes]]) -> AnswerHead:
    """Render the status line, `preamble` (whole lines) and `headers`; framing and the empty line are left to the caller.

    Returns the lines, the `content-length` if one is given, and whether the application wants the connection closed.
    `connection` and `transfer-encoding` are the connection's own: of the first only `close` is heeded. Raises ValueError
    for a name that is no token, a control character in a value, a bad length, or a status that is none.
    """
    line = _STATUS_LINES.get(status)
    if line is None:
        raise ValueError(f"{status} is not the status of an answer.")
    parts: list[bytes] = [line]
    length: int | None = None
    closes = False
    for name, value in headers:
        prefix = _prefixes.get(name)
        if prefix is None:
            lowered = name.lower()
            if lowered == b"content-length":
                length = _read_length(value)
            elif lowered == b"connection":
                closes = closes or b"close" in value.lower()
            prefix = _learn_name(name, lowered)
        if prefix:
            parts += (prefix, value, b"\r\n")
    lines = b"".join(parts)
    # One pass for all values: each line of ours ends in two control characters, and there may be no more than those.
    if len(lines) - len(lines.translate(None, _CONTROL_BYTES)) != 2 + (len(parts) - 1) // 3 * 2:
        raise ValueError("A header value holds a control character.")
    return lines + preamble, length, closes


def _read_length(value: bytes) -> int:
    if not value.isdigit():
        raise ValueError("content-length is not a number.")
    return int(value)


def _learn_name(name: bytes, lowered: bytes) -> bytes:
    if lowered == b"content-length":
        return b"content-length: "
    if lowered in _OURS:
        return b""
    if not _TOKEN.fullmatch(name):
        raise ValueError("A header name is not a token.")
    prefix = lowered + b": "
    if len(_prefixes) < 1024:
        _prefixes[name] = prefix
    return prefix


class Preamble:
    """The header lines that every answer has: uvicorn renews the list once a second, and it is rendered once."""

    def __init__(self) -> None:
        self.fields: Fields | None = None
        self.lines = b""

    def renew(self, fields: Fields) -> None:
        """Render `fields`, without `server`."""
        self.fields = fields
        self.lines = b"".join(b"%b: %b\r\n" % field for field in fields if field[0] != b"server")


def write_refusal(error: GatewayError, request_id: str, preamble: bytes, *, bodiless: bool = False) -> bytes:
    """Render `error` as a whole answer after which the connection closes."""
    body = error.body()
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in error.headers.items()]
    headers += [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id.encode()),
    ]
    lines, _, _ = write_head(error.status, preamble, headers)
    return lines + b"connection: close\r\n\r\n" + (b"" if bodiless else body)
