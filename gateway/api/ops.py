"""Whether the process is alive and may get traffic, on both ports.

Alive says nothing of upstreams: a gateway that is restarted because an upstream is down helps nobody. Ready ends when
the drain begins. Must not know calls.
"""

from starlette.types import Receive, Scope, Send

from gateway.errors import MethodNotAllowed


class Health:
    """`GET /healthz` and `GET /readyz`, as an ASGI application. `ready` is set by whoever starts and stops the process."""

    paths = frozenset({"/healthz", "/readyz"})

    def __init__(self) -> None:
        self.ready = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """200 with `{"status": "ok"}`, or 503 with `draining`; 405 for other methods."""
        del receive  # no body is read
        if scope["method"] not in ("GET", "HEAD"):
            error = MethodNotAllowed("This path takes GET only.")
            await _say(send, error.status, error.body(), [(b"allow", b"GET, HEAD")])
        elif scope["path"] == "/readyz" and not self.ready:
            await _say(send, 503, b'{"status":"draining"}', [(b"retry-after", b"1")])
        else:
            await _say(send, 200, b'{"status":"ok"}', [])


async def _say(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
