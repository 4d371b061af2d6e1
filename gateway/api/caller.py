"""One caller's request as the endpoints see it: whose it is, its head, its body once, and the answer to it.

Knows ASGI; must not know models, upstreams or metrics.
"""

import asyncio
from collections.abc import Sequence
from math import inf, nan

from starlette.types import Receive

from gateway.call import Exchange, Principal
from gateway.errors import CallerError, CallerLeft, UnsupportedMedia
from gateway.flow.answer import Answer
from gateway.wire.tracecontext import Passed

# Seconds in one unit of each. The first bounds the whole call; the SDKs' own only how long they wait for a first byte.
_PATIENCE = {b"x-request-timeout-ms": 0.001, b"x-stainless-read-timeout": 1.0, b"x-stainless-timeout": 1.0}
_HEEDED = frozenset((*_PATIENCE, b"content-encoding", b"traceparent"))
_MARGIN = 0.25  # seconds
_LONGEST_NUMBER = 32


class Caller:
    """`path_rest`: what follows the route's own path, for routes that name one thing of many."""

    __slots__ = ("_headers", "_receive", "answer", "exchange", "path_rest", "principal")

    def __init__(
        self,
        headers: Sequence[tuple[bytes, bytes]],
        receive: Receive,
        answer: Answer,
        exchange: Exchange,
        principal: Principal,
    ) -> None:
        self._headers = headers
        self._receive = receive
        self.answer = answer
        self.exchange = exchange
        self.principal = principal
        self.path_rest = ""

    async def json_body(self) -> bytes:
        """The whole body, which says that it is JSON. Raises CallerError, CallerLeft."""
        self._read_head()
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            body: bytes = message["body"]
            return body
        parts: list[bytes] = []
        while message["type"] == "http.request":
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                return b"".join(parts)
            message = await self._receive()
        raise CallerLeft("The caller left.")

    def _read_head(self) -> None:
        """That the body is JSON, and for how long the caller will wait."""
        content_type = b""
        for name, value in self._headers:
            if name == b"content-type":
                content_type = value
            elif name in _HEEDED:
                self._heed(name, value)
        media = content_type.partition(b";")[0].strip().lower()
        if media != b"application/json":
            raise UnsupportedMedia("Send the body as application/json.")

    def _heed(self, name: bytes, value: bytes) -> None:
        if name in _PATIENCE:
            self._be_quick(name, value)
        elif name == b"content-encoding":
            if value.lower() != b"identity":
                raise UnsupportedMedia("Send the body without an encoding.", code="unsupported_content_encoding")
        elif self.exchange.trace is None:  # nobody traces here, but perhaps behind
            self.exchange.trace = Passed.of(self._headers)

    def _be_quick(self, name: bytes, value: bytes) -> None:
        exchange, now = self.exchange, asyncio.get_running_loop().time()
        seconds = _number(value) * _PATIENCE[name]
        if name != b"x-request-timeout-ms":
            # Just before the SDK gives up and asks again, twice, by itself: our answer tells it not to.
            if 0 < seconds < inf:
                exchange.first_byte_by = min(exchange.first_byte_by, now + seconds - min(0.1 * seconds, _MARGIN))
        elif 0 < seconds < inf:
            exchange.deadline = min(exchange.deadline, now + seconds)
        else:
            raise CallerError("Give a number of milliseconds.", code="invalid_timeout", param="x-request-timeout-ms")


def _number(value: bytes) -> float:
    try:
        return float(value) if len(value) < _LONGEST_NUMBER else nan
    except ValueError:
        return nan
