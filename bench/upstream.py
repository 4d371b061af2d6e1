"""The scripted upstream: answers every contender alike, and as cheaply as Python can.

The model's name chooses the script: `bench-plain` (a JSON answer of about 1 KB), `bench-stream` (events of about 170
bytes, one every interval) and `bench-silent` (a stream that says a word, and then nothing until the caller goes).
Run by the bench as `python -m bench.upstream CHUNKS INTERVAL`; prints its port, and ends when its standard input does.
"""

# ruff: noqa: D102 - most methods here are named, and explained, by asyncio and httptools
import asyncio
import re
import sys
from typing import cast

import httptools
import uvloop

MARK = b"~tok~"  # once in every content chunk
END_OF_ANSWER = b"~end of answer~"  # last words of a plain answer

_MODEL = re.compile(rb'"model"\s*:\s*"bench-([a-z]+)"')
_WANTS_USAGE = re.compile(rb'"include_usage"\s*:\s*true')
_USAGE = b'"usage":{"prompt_tokens":120,"completion_tokens":160,"total_tokens":280}'


def _whole(status: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
    return head + body


def _plain() -> bytes:
    words = b"The answer to this is longer than the question was. " * 14 + END_OF_ANSWER
    return _whole(
        b"200 OK",
        b'{"id":"chatcmpl-bench","object":"chat.completion","created":1760000000,"model":"bench-plain","choices":[{"index":0,'
        b'"message":{"role":"assistant","content":"' + words + b'"},"finish_reason":"stop"}],' + _USAGE + b"}",
    )


def _event(delta: bytes, finish: bytes = b"null") -> bytes:
    return (
        b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1760000000,"model":"bench-stream",'
        b'"choices":[{"index":0,"delta":' + delta + b',"finish_reason":' + finish + b"}]}\n\n"
    )


def _frame(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


PLAIN = _plain()
HEALTHY = _whole(b"200 OK", b'{"status":"ok"}')
MODELS = _whole(b"200 OK", b'{"object":"list","data":[{"id":"bench-plain","object":"model","owned_by":"bench"}]}')
UNKNOWN = _whole(b"404 Not Found", b'{"error":{"message":"no such script","type":"bench","param":null,"code":null}}')
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
) + _frame(_event(b'{"role":"assistant","content":""}'))
SILENT_HEAD = STREAM_HEAD + _frame(_event(b'{"content":"So"}'))
USAGE_EVENT = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1760000000,"model":"bench-stream",'
    b'"choices":[],' + _USAGE + b"}\n\n"
)
FINISH = _frame(_event(b"{}", b'"stop"'))
DONE = _frame(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Script:
    """What all connections play: the frames of a stream, and the time between two of them."""

    def __init__(self, chunks: int, interval: float) -> None:
        self.frames = [_frame(_event(b'{"content":" word %05d %b"}' % (number, MARK))) for number in range(chunks)]
        self.interval = interval


class Connection(asyncio.Protocol):
    """One connection of a contender: one request at a time."""

    def __init__(self, script: Script, loop: asyncio.AbstractEventLoop) -> None:
        self._script = script
        self._loop = loop
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""
        self._body: list[bytes] = []
        self._sent = 0
        self._began = 0.0
        self._usage = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self._timer is not None:
            self._timer.cancel()

    def on_url(self, url: bytes) -> None:
        self._path = url
        self._body.clear()

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        if self._path.endswith(b"/chat/completions"):
            self._complete(b"".join(self._body))
        else:
            fixed = {b"/v1/models": MODELS, b"/health": HEALTHY}
            self._transport.write(fixed.get(self._path, UNKNOWN))

    def _complete(self, body: bytes) -> None:
        model = _MODEL.search(body)
        script = model[1] if model else b""
        if script == b"plain":
            self._transport.write(PLAIN)
        elif script == b"stream":
            self._transport.write(STREAM_HEAD)
            self._usage = _WANTS_USAGE.search(body) is not None
            self._sent = 0
            self._began = self._loop.time()
            self._wait()
        elif script == b"silent":
            self._transport.write(SILENT_HEAD)
        else:
            self._transport.write(UNKNOWN)

    def _wait(self) -> None:
        self._timer = self._loop.call_at(self._began + (self._sent + 1) * self._script.interval, self._next)

    def _next(self) -> None:
        frames = self._script.frames
        if self._sent < len(frames):
            self._transport.write(frames[self._sent])
            self._sent += 1
            self._wait()
        else:
            usage = _frame(USAGE_EVENT) if self._usage else b""
            self._transport.write(FINISH + usage + DONE)


async def serve(script: Script) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(script, loop), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(serve(Script(chunks=int(sys.argv[1]), interval=float(sys.argv[2]))))
