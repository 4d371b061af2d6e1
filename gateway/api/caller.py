"""One caller's request as the endpoints see it: whose it is, its head, its body once, and the answer to it.

Knows ASGI; must not know models, upstreams or metrics.
"""

from collections.abc import Sequence

from starlette.types import Receive

from gateway.call import Exchange, Principal
from gateway.errors import CallerLeft, UnsupportedMedia
from gateway.flow.answer import Answer


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
        self._expect_json()
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

    def _expect_json(self) -> None:
        content_type = b""
        for name, value in self._headers:
            if name == b"content-type":
                content_type = value
            elif name == b"content-encoding" and value.lower() != b"identity":
                raise UnsupportedMedia("Send the body without an encoding.", code="unsupported_content_encoding")
        media = content_type.partition(b";")[0].strip().lower()
        if media != b"application/json":
            raise UnsupportedMedia("Send the body as application/json.")
