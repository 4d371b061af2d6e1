"""What can go wrong below HTTP, in httpx's own words.

Callers catch httpx's exceptions; the subclasses here only split what a retry policy must tell apart. One rule holds for
all of them: a `ConnectError`, `ConnectTimeout` or `PoolTimeout` means that the request was not executed, and nothing
else means that. This file must not know sockets or pools. What is ours in the tree::

    httpx.TransportError
    ├── TimeoutException
    │   ├── DeadlineExceeded         the request's total deadline, in whatever phase it passed
    │   └── ReadTimeout
    │       ├── FirstByteTimeout     the request was sent and nothing came back
    │       └── IdleTimeout          the response began and then fell silent
    ├── NetworkError
    │   └── ConnectError
    │       ├── ResolveError         the host name has no address
    │       └── TlsError             no trust, no common version, or the handshake broke off
    └── ProtocolError
        └── RemoteProtocolError
            └── ResponseHeadTooLarge too many header fields, or too many bytes of them
"""

import httpx


class DeadlineExceeded(httpx.TimeoutException):
    """The request's total deadline passed, in whatever phase it was."""


class FirstByteTimeout(httpx.ReadTimeout):
    """The request was sent, and no byte of a final response came in time."""


class IdleTimeout(httpx.ReadTimeout):
    """The response had begun, and then nothing came for too long while somebody was waiting for it."""


class ResolveError(httpx.ConnectError):
    """The host name could not be resolved."""


class TlsError(httpx.ConnectError):
    """The TLS handshake failed: certificate, name, version, or a peer that hung up during it."""


class ResponseHeadTooLarge(httpx.RemoteProtocolError):
    """The response's head (or its trailers) has more fields or bytes than allowed."""
