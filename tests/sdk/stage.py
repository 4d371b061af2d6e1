"""The stage that clients' tests play on: one gateway process, a real llama.cpp and a scripted upstream behind it.

The scripted upstream's port stands for the whole session, so that the gateway can be told of it, and each test brings the
script. `Sdk` hides whether the SDK's client is the synchronous or the asynchronous one.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import openai

from tests.support.processes import PATIENCE, GatewayProcess, Llama
from tests.support.upstream import Action, Script, ScriptedUpstream, read, reply, send

# Planted: none of these may be found in anything that the gateway writes.
CALLERS_KEY = "sk-planted-callers-8Jq2"
NARROW_KEY = "sk-planted-narrow-5Tz9"
LLAMAS_KEY = "sk-planted-llamas-4Wd7"
SCRIPTS_KEY = "sk-planted-scripts-6Hc3"
SECRETS = (CALLERS_KEY, NARROW_KEY, LLAMAS_KEY, SCRIPTS_KEY)

CONFIG = """\
server: {{host: 127.0.0.1, port: 0, admin_port: 0, drain_seconds: 1}}
auth:
  keys:
    - {{name: tests, key: "${{CALLERS_KEY}}"}}
    - {{name: narrow, key: "${{NARROW_KEY}}", models: [tiny]}}
upstreams:
  llama: {{kind: openai, url: "{llama}/v1", api_key: "${{LLAMAS_KEY}}"}}
  script: {{kind: openai, url: "{script}/v1", api_key: "${{SCRIPTS_KEY}}"}}
models:
  tiny: {{targets: [{{upstream: llama}}]}}
  org/alias: {{targets: [{{upstream: llama, model: tiny}}]}}
  scripted: {{targets: [{{upstream: script}}]}}
"""


class Standing:
    """A port on which one scripted upstream after another can be found."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __call__(self, *scripts: Script) -> ScriptedUpstream:
        """An upstream that listens on this port while it is entered."""
        return _OnPort(self._listener, *scripts)

    def close(self) -> None:
        """Nobody listens there any more."""
        self._listener.close()


class _OnPort(ScriptedUpstream):
    def __init__(self, listener: socket.socket, *scripts: Script) -> None:
        super().__init__(*scripts)
        self._listener = listener

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, sock=self._listener.dup())
        self.port = self._listener.getsockname()[1]
        return self


@dataclass(frozen=True)
class Stage:
    """All that is running."""

    llama: Llama
    standing: Standing
    gateway: GatewayProcess


@contextlib.contextmanager
def open_stage(folder: Path) -> Iterator[Stage]:
    """Start everything; end everything. `folder` gets the config."""
    standing = Standing()
    with contextlib.closing(standing), Llama(LLAMAS_KEY) as llama:
        config = folder / "gateway.yaml"
        config.write_text(CONFIG.format(llama=llama.url, script=standing.url))
        environ = {
            "CALLERS_KEY": CALLERS_KEY,
            "NARROW_KEY": NARROW_KEY,
            "LLAMAS_KEY": LLAMAS_KEY,
            "SCRIPTS_KEY": SCRIPTS_KEY,
        }
        with GatewayProcess(config, environ) as gateway:
            yield Stage(llama, standing, gateway)
        assert gateway.code == 0, list(gateway.err)


class Sdk:
    """The official SDK, with either of its clients; what it is asked to do is a function of the client."""

    def __init__(self, base_url: str, *, asynchronous: bool, api_key: str = CALLERS_KEY, **options: Any) -> None:
        make = openai.AsyncOpenAI if asynchronous else openai.OpenAI
        self._client: Any = make(base_url=base_url, api_key=api_key, **{"timeout": PATIENCE, **options})
        self.asynchronous = asynchronous

    def sibling(self, base_url: str | None = None, **options: Any) -> "Sdk":
        """One like it, with other options."""
        return Sdk(base_url or str(self._client.base_url), asynchronous=self.asynchronous, **options)

    async def __call__(self, ask: Callable[[Any], Any]) -> Any:
        """What `ask` of the client comes back with."""
        return await ask(self._client) if self.asynchronous else await asyncio.to_thread(ask, self._client)

    async def events(self, ask: Callable[[Any], Any]) -> list[Any]:
        """All events of the stream that `ask` opens."""
        return [event async for event in self.each(await self(ask))]

    async def each(self, stream: Any) -> AsyncIterator[Any]:
        """The events of a stream, as they come."""
        if self.asynchronous:
            async for event in stream:
                yield event
            return
        events = iter(stream)
        while (event := await asyncio.to_thread(next, events, None)) is not None:
            yield event

    async def close(self, stream: Any) -> None:
        """Leave a stream early."""
        await (stream.close() if self.asynchronous else asyncio.to_thread(stream.close))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close(self._client)


# What the real model says.

SENTENCE = "Grüße aus 東京 🎉, fin."


def saying(text: str = SENTENCE) -> dict[str, object]:
    """What a request to llama.cpp must carry beside OpenAI's fields for the answer to be exactly `text`: a grammar."""
    return {"grammar": "root ::= " + json.dumps(text, ensure_ascii=False)}


# What scripts say.


def told() -> list[dict[str, str]]:
    """Messages that ask nothing in particular."""
    return [{"role": "user", "content": "Tell me anything."}]


def chat_reply(text: str, **more: object) -> Action:
    """A whole chat completion that says `text`."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return json_reply({**body, "usage": usage, **more})


def json_reply(body: object, status: str = "200 OK", headers: tuple[str, ...] = ()) -> Action:
    """An answer in JSON, with its characters as they are."""
    text = json.dumps(body, ensure_ascii=False).encode()
    return reply(text, status=status, headers=["content-type: application/json", *headers])


def delta(text: str | None = None, finish: str | None = None) -> bytes:
    """One event of a chat stream."""
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": finish}
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return event(chunk)


def event(data: object) -> bytes:
    """One event with JSON."""
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Data in HTTP's chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def stream(*events: bytes) -> Script:
    """Answer a request with the head and these events of a stream, and leave it open."""
    return [read(), send(STREAM_HEAD, *map(chunk, events))]


def whole_stream(*events: bytes) -> Script:
    """Answer a request with a stream that ends as it should."""
    return [*stream(*events, DONE), send(LAST_CHUNK)]
