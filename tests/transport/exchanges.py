"""Short ways to send a request through a transport and to read what comes back."""

import gc
from pathlib import Path
from typing import Any

import httpx


def request(
    url: str, body: bytes | None = b"{}", timeouts: dict[str, float] | None = None, *, method: str = "POST"
) -> httpx.Request:
    """A request whose phases may take 10 s each unless told otherwise: no test waits that long, and none hangs."""
    phases = ("connect", "pool", "write", "read")
    timeout = dict.fromkeys(phases, 10.0) | (timeouts or {})
    return httpx.Request(method, url, content=body, extensions={"timeout": timeout})


async def whole(response: httpx.Response) -> bytes:
    """The body, from the transport's own stream."""
    stream: Any = response.stream
    try:
        return b"".join([chunk async for chunk in stream])
    finally:
        await stream.aclose()


async def fetch(transport: httpx.AsyncBaseTransport, sent: httpx.Request) -> tuple[int, bytes]:
    """Status and body."""
    response = await transport.handle_async_request(sent)
    return response.status_code, await whole(response)


def descriptors() -> int:
    """How many file descriptors this process has open."""
    gc.collect()
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
