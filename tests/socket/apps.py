"""Small ASGI applications, each for one thing that an application can do to a protocol."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


async def read(receive: Receive) -> bytes:
    body = b""
    while True:
        message: MutableMapping[str, Any] = await receive()
        if message["type"] != "http.request":
            raise ConnectionError("The caller left in the middle of the body.")
        body += message["body"]
        if not message["more_body"]:
            return bytes(body)


async def reply(send: Send, body: bytes, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
    fields = [(b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the method, the path and the body."""
    body = await read(receive)
    await reply(send, f"{scope['method']} {scope['path']} ".encode() + body)


async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer without a look at the body."""
    await reply(send, b"hello")


async def mirror(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the scope."""
    shown = {key: scope[key] for key in ("type", "http_version", "method", "scheme", "root_path", "path", "state")}
    shown |= {key: scope[key].decode() for key in ("raw_path", "query_string")}
    shown["headers"] = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]
    shown["asgi"] = scope["asgi"]
    shown["client"], shown["server"] = scope["client"], scope["server"]
    await reply(send, orjson.dumps(shown))


class Held:
    """An application that a test holds in the middle: it reads the body, begins to answer if told to, and waits."""

    def __init__(self, *, reads: bool = True, begins: bool = False) -> None:
        self.reads = reads
        self.begins = begins
        self.entered = asyncio.Event()
        self.go = asyncio.Event()
        self.left = asyncio.Event()
        self.departures = 0
        self.after: BaseException | None = None

    def _departed(self) -> None:
        self.departures += 1
        self.left.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"]["gateway.on_disconnect"](self._departed)
        try:
            if self.reads:
                await read(receive)
            if self.begins:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"one", "more_body": True})
            self.entered.set()
            await self.go.wait()
            if self.begins:
                await send({"type": "http.response.body", "body": b"two"})
            else:
                await reply(send, b"done")
        except BaseException as error:
            self.after = error
            raise
