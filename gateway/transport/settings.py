"""What can be set about the transport, with defaults that are right for production.

It holds values only: nothing here opens a file or a socket, so a configuration can be checked without either.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportSettings:
    """Limits are per origin (scheme, host, port); times are seconds, sizes are bytes.

    `engine`: "own" is this package's; "httpx" is httpx's own transport, for what ours leaves out.
    `proxy`: URL of an egress HTTP proxy, which may hold a password; only with "httpx".
    `max_connections`: open at once, busy or idle; more requests wait their turn.
    `keepalive_expiry`: how long an idle connection is kept; below what servers keep, so that they rarely close first.
    `max_connection_age`: not reused when older, so that a change in DNS is noticed.
    `max_header_bytes`, `max_header_fields`, `max_informational`: what one response's head may be.
    `ca_file`: PEM file of trusted authorities, instead of certifi's.
    `client_cert`, `client_key`: PEM files to show to upstreams that ask; the key may be in the certificate's file.
    `verify`: check certificates and names. Off only for experiments.
    """

    engine: Literal["own", "httpx"] = "own"
    proxy: str | None = field(default=None, repr=False)
    max_connections: int = 1000
    keepalive_expiry: float = 15.0
    max_connection_age: float = 60.0
    max_header_bytes: int = 64 * 1024
    max_header_fields: int = 100
    max_informational: int = 16
    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.proxy is not None and self.engine != "httpx":
            raise ValueError('proxy needs engine: "httpx"')
        if self.client_key is not None and self.client_cert is None:
            raise ValueError("client_key needs client_cert")
        if self.max_connections < 1:
            raise ValueError("max_connections must be at least 1")
