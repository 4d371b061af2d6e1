"""What an upstream answers, where it is no stream: what is read of its head, its whole body, or why it was refused.

Must not know attempts, replicas or callers.
"""

from typing import NamedTuple

import httpx
import msgspec

from gateway import errors
from gateway.dialects import Translator
from gateway.fleet import Upstream
from gateway.outcome import Refusal, of_status
from gateway.wire import chat

Fields = list[tuple[bytes, bytes]]

_PASSED = frozenset((b"openai-processing-ms", b"openai-version"))
LARGEST_REPLY = 32 << 20
LARGEST_REFUSAL = 64 << 10


class Plain(NamedTuple):
    """A whole reply, verified to be JSON. `headers`: what of the upstream's the caller may see."""

    body: bytes
    headers: Fields
    read: chat.Chunk


class Head(NamedTuple):
    """What is read of a response's headers, in one pass: looking them up one by one costs more than all the rest."""

    content_type: bytes  # without its parameters, in lower case
    encoded: bool
    passed: Fields  # to the caller: the upstream's limits and its own time, nothing that tells of the account

    @classmethod
    def of(cls, response: httpx.Response) -> "Head":
        """Read a response's headers."""
        content_type, encoded = b"", False
        passed: Fields = []
        for given, value in response.headers.raw:
            name = given.lower()
            if name == b"content-type":
                content_type = value.partition(b";")[0].strip().lower()
            elif name == b"content-encoding":
                encoded = value.lower() != b"identity"
            elif name.startswith(b"x-ratelimit-") or name in _PASSED:
                passed.append((name, value))
        return cls(content_type, encoded, passed)


async def refused(upstream: Upstream, response: httpx.Response) -> errors.GatewayError:
    """The error that an answer with a bad status means."""
    try:
        body = await read_whole(response, LARGEST_REFUSAL)
    except (httpx.HTTPError, errors.UpstreamBroken):
        body = b""  # the status says enough
    return of_status(response.status_code, upstream.dialect.refusal(response.status_code, body), response.headers)


def is_plain(content_type: bytes, streams: bool) -> bool:
    """Whether the answer is JSON, which also an upstream may send that was asked for a stream."""
    if content_type == b"application/json" or (content_type == b"" and not streams):
        return True
    if streams and content_type in (b"text/event-stream", b""):
        return False
    raise errors.UpstreamBroken("The upstream's answer is of the wrong type.", code="upstream_bad_content_type")


async def plain(upstream: Upstream, response: httpx.Response, headers: Fields, translator: Translator | None) -> Plain:
    """A whole reply. Raises GatewayError where it is none; `translator`: what a stream would have needed."""
    body = await read_whole(response, LARGEST_REPLY)
    try:
        read = chat.read_chunk(body)
    except msgspec.DecodeError:
        raise errors.UpstreamBroken("The upstream's answer is not valid JSON.") from None
    if read.failed:
        raise told_inside(upstream.dialect.refusal(200, body))
    if translator is not None:
        raise errors.UpstreamBroken("The upstream's answer is no stream.", code="upstream_bad_content_type")
    return Plain(body, headers, read)


def told_inside(refusal: Refusal) -> errors.GatewayError:
    """An error that was told under status 200: the upstream's own failure, unless its dialect knows better."""
    return of_status(500, refusal, {})


async def read_whole(response: httpx.Response, limit: int) -> bytes:
    """All of a body. Raises UpstreamBroken past `limit` bytes, and the exceptions of httpx."""
    parts: list[bytes] = []
    size = 0
    async for part in body_of(response):
        parts.append(part)
        size += len(part)
        if size > limit:
            raise errors.UpstreamBroken("The upstream's answer is too large.", code="upstream_response_too_large")
    return b"".join(parts)


def body_of(response: httpx.Response) -> httpx.AsyncByteStream:
    """The bytes that are still to come."""
    if not isinstance(response.stream, httpx.AsyncByteStream):
        raise TypeError("the transport is not asynchronous")
    return response.stream
