"""A replica that serves well until it is told to fail in a certain way, and well again when it is told to.

It is quick, but not so quick that a pause of the machine looks like a slow replica. What it sees is counted here, so that a
test need not believe the gateway.
"""

import asyncio
import socket
import struct
import time
from typing import Self

import orjson

from tests.support.stage import DONE, END, ROLE, STREAM_HEAD, delta, event, frame
from tests.support.upstream import Action, Peer, ScriptedUpstream, forever, read, reply, send, wait_closed

WORDS = 5  # of an answer, one in an event
FAULTS = ("killed", "stalled", "slow", "failing", "throttled", "lying")
SLOWNESS = 10
RETRY_AFTER = 1  # seconds
FIRST, BETWEEN = 0.05, 0.002  # seconds: until a stream's first event, or a plain answer; from event to event
_JSON = "content-type: application/json"
_ERROR = {"error": {"message": "out of memory", "type": "server_error", "param": None, "code": None}}
_RESET = struct.pack("ii", 1, 0)  # to linger for no time


class Replica(ScriptedUpstream):
    """Listens on one port, of which it keeps hold while it is dead. `name` is the model that it says it is.

    `seen`: when requests were here, whole; `served`: likewise, of those that have been answered well. Monotonic seconds.
    """

    def __init__(self, name: str) -> None:
        super().__init__([forever(self._answer)])
        self.name = name
        self.seen: list[float] = []
        self.served: list[float] = []
        self._fault = ""
        self._place = _bound(0)  # and it never listens: nobody else is given the port
        self.port = self._place.getsockname()[1]

    @property
    def netloc(self) -> str:
        """Its name in the gateway's metrics."""
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        listener = _bound(self.port)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)  # so will all that it accepts
        self._server = await asyncio.start_server(self._accept, sock=listener)
        return self

    def release(self) -> None:
        """Give the port back."""
        self._place.close()

    async def fail(self, fault: str) -> None:
        """From now on be as one of FAULTS says."""
        self._fault = fault
        if fault == "killed":
            await self.__aexit__(None, None, None)

    async def recover(self) -> None:
        """From now on be well."""
        fault, self._fault = self._fault, ""
        if fault == "killed":
            await self.__aenter__()

    async def _answer(self, peer: Peer) -> None:
        await read()(peer)
        request = self.requests.pop()  # this one: nothing was awaited since it was put there
        came_at = time.monotonic()
        self.seen.append(came_at)
        stream = b'"stream":true' in request.body
        if self._fault in ("", "slow"):
            await self._serve_well(peer, stream, SLOWNESS if self._fault else 1)
            self.served.append(came_at)
            self._changed.set()
        else:
            await _wrong(self._fault, stream)(peer)

    async def _serve_well(self, peer: Peer, stream: bool, pace: int) -> None:
        await asyncio.sleep(FIRST * pace)
        if stream:
            await send(STREAM_HEAD + frame(ROLE))(peer)
            for _ in range(WORDS):
                await send(frame(delta("word ", model=self.name)))(peer)
                await asyncio.sleep(BETWEEN * pace)
            await send(frame(delta(finish="stop", model=self.name) + DONE) + END)(peer)
        else:
            message = {"role": "assistant", "content": "word " * WORDS}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            await reply(orjson.dumps({"id": "c-1", "model": self.name, "choices": choices}), headers=[_JSON])(peer)


def _wrong(fault: str, stream: bool) -> Action:
    body = orjson.dumps(_ERROR)
    if fault == "failing":
        return reply(body, status="500 Internal Server Error", headers=[_JSON])
    if fault == "throttled":
        return reply(body, status="429 Too Many Requests", headers=[_JSON, f"retry-after: {RETRY_AFTER}"])
    if fault == "lying":
        return send(STREAM_HEAD + frame(event(_ERROR)) + END) if stream else reply(body, headers=[_JSON])
    assert fault == "stalled"
    return wait_closed()


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock
