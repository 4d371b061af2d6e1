"""The load's end of a connection: sends prepared bytes, and hands over every answer whole."""

# ruff: noqa: D102 - most methods here are named, and explained, by asyncio and httptools
import asyncio
from collections.abc import Callable
from typing import cast

import httptools

from bench.talk import WrongAnswerError

Answered = Callable[["Connection", int, bytes], None]


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time. `piece`, if given, also gets the body as it comes."""

    def __init__(self, failed: asyncio.Future[None], piece: Callable[["Connection", bytes], None] | None) -> None:
        self._failed = failed
        self._piece = piece
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._answered: Answered | None = None
        self.ended = False

    def send(self, request: bytes, answered: Answered) -> None:
        """Send `request`; `answered` is called with status and body when the answer is whole."""
        self._answered = answered
        self._body = []
        self._transport.write(request)

    def close(self) -> None:
        """Close it, in the middle of an answer or not."""
        self.ended = True
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, WrongAnswerError) as error:
            self._fail(repr(error.__cause__ or error.__context__ or error))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended and self._answered is not None:
            self._fail(f"connection closed in an answer ({exc})")
        self.ended = True  # an idle one may be closed: it is replaced before the next load

    def on_body(self, data: bytes) -> None:
        self._body.append(data)
        if self._piece is not None:
            self._piece(self, data)

    def on_message_complete(self) -> None:
        answered, self._answered = self._answered, None
        if answered is None:
            self._fail("an answer that nobody asked for")
            return
        answered(self, self._parser.get_status_code(), b"".join(self._body))
        if not self._parser.should_keep_alive():
            self._fail("the contender does not keep the connection alive")

    def _fail(self, why: str) -> None:
        self.ended = True
        if not self._failed.done():
            self._failed.set_exception(WrongAnswerError(why))
