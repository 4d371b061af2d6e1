"""Reads a small answer to its end, and no more of it than it may be. For whoever asks beside the calls, not for calls."""

import httpx


async def whole(response: httpx.Response, limit: int) -> bytes | None:
    """The body; None where it has more than `limit` bytes. Raises httpx's exceptions; closing is the caller's."""
    if not isinstance(response.stream, httpx.AsyncByteStream):
        raise TypeError("the transport is not asynchronous")
    body = bytearray()
    async for part in response.stream:
        body += part
        if len(body) > limit:
            return None
    return bytes(body)
