"""The way to upstreams: httpx's transport interface, and underneath an engine of our own."""

from gateway.transport.body import BodyStream
from gateway.transport.engine import Engine, open_transport
from gateway.transport.errors import (
    DeadlineExceeded,
    FirstByteTimeout,
    IdleTimeout,
    ResolveError,
    ResponseHeadTooLarge,
    TlsError,
)
from gateway.transport.request import PreparedRequest, Target
from gateway.transport.settings import TransportSettings

__all__ = [
    "BodyStream",
    "DeadlineExceeded",
    "Engine",
    "FirstByteTimeout",
    "IdleTimeout",
    "PreparedRequest",
    "ResolveError",
    "ResponseHeadTooLarge",
    "Target",
    "TlsError",
    "TransportSettings",
    "open_transport",
]
