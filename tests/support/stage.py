"""A whole gateway on a real port, with a scripted upstream behind it, in the test's own event loop.

Only its end is the test's: log lines are kept instead of printed. Everything between the two sockets is the product.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson
import structlog
import uvicorn
from prometheus_client.samples import Sample

from gateway.api.protocol import protocol_factory
from gateway.app import Gateway, create_gateway
from gateway.config import Settings
from gateway.transport import Engine
from tests.support.clock import VirtualLoop
from tests.support.client import Caller, Response, rounds
from tests.support.upstream import Script, ScriptedUpstream

KEY = "sk-caller-0123456789"
UPSTREAM_KEY = "sk-upstream-9876543210"


class Records:
    """The log, as what it was rendered from."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.logger = structlog.wrap_logger(
            self, processors=[structlog.stdlib.add_log_level], wrapper_class=structlog.make_filtering_bound_logger(20)
        )

    def info(self, **event: Any) -> None:
        self.lines.append(event)

    warning = error = info

    async def request(self, number: int = 0) -> dict[str, Any]:
        """The line of the request that ended as number `number`. Waits for it."""
        async with asyncio.timeout(10):
            while len(self.lines) <= number:
                await asyncio.sleep(0)
        return self.lines[number]


class Stage:
    """What a test needs: where to call, what the upstream saw, what was recorded."""

    def __init__(self, gateway: Gateway, server: uvicorn.Server, upstream: ScriptedUpstream, records: Records) -> None:
        self.gateway = gateway
        self.server = server
        self.upstream = upstream
        self.records = records
        self.port: int = server.servers[0].sockets[0].getsockname()[1]

    async def caller(self, **options: Any) -> Caller:
        return await Caller.connect(self.port, **options)

    async def ask(
        self, body: Mapping[str, Any] | bytes, path: str = "/v1/chat/completions", **headers: str
    ) -> Response:
        """One request on a connection of its own, and the whole answer to it."""
        async with await self.caller() as caller:
            await caller.send(request(body, path, **headers))
            return await caller.response()

    async def get(self, path: str, *, method: str = "GET", key: str | None = KEY) -> Response:
        async with await self.caller() as caller:
            authorization = "" if key is None else f"authorization: Bearer {key}\r\n"
            await caller.send(f"{method} {path} HTTP/1.1\r\nhost: g\r\n{authorization}\r\n".encode())
            return await caller.response()

    def sample(self, name: str, **labels: str) -> float:
        """The value of one series; 0 where it is not there."""
        found = [
            sample for sample in self._samples() if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(sample.value for sample in found)

    def _samples(self) -> list[Sample]:
        return [sample for family in self.gateway.metrics.registry.collect() for sample in family.samples]

    async def settled(self) -> None:
        """Wait until no call holds a connection to the upstream: each is closed or back in the pool."""
        async with asyncio.timeout(10):
            while any(self._active()):
                await asyncio.sleep(0)

    def _active(self) -> list[int]:
        engines = [upstream.transport for upstream in self.gateway.fleet.upstreams.values()]
        return [pool.active for engine in engines if isinstance(engine, Engine) for pool in engine.pools.values()]


def request(body: Mapping[str, Any] | bytes, path: str = "/v1/chat/completions", **headers: str) -> bytes:
    """A POST as its bytes. `headers`: with _ for -; an empty value leaves a default one out."""
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    fields = {"host": "g", "authorization": f"Bearer {KEY}", "content-type": "application/json"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    fields["content-length"] = str(len(content))
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items() if value)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def chat(**members: Any) -> dict[str, Any]:
    """A chat request's members."""
    return {"model": "m", "messages": [{"role": "user", "content": "Say something."}], **members}


def settings(url: str, **sections: Any) -> Settings:
    """Settings for one upstream at `url`: model `m` goes there as `upstream-m`, model `same` as it is.

    One attempt a call, unless a test says otherwise.
    """
    upstream = {"kind": "openai", "url": f"{url}/v1", "api_key": UPSTREAM_KEY, **sections.pop("upstream", {})}
    return Settings.model_validate(
        {
            "auth": {"keys": [{"name": "caller", "key": KEY}]},
            "upstreams": {"up": upstream},
            "models": {
                "m": {"targets": [{"upstream": "up", "model": "upstream-m"}]},
                "same": {"targets": [{"upstream": "up"}]},
            },
            "retry": {"attempts": 1},
            **sections,
        }
    )


@contextlib.asynccontextmanager
async def staged(*scripts: Script, **sections: Any) -> AsyncIterator[Stage]:
    """Serve, with an upstream that follows `scripts`; `sections` go into the settings."""
    async with ScriptedUpstream(*scripts) as upstream:
        records = Records()
        loop = asyncio.get_running_loop()
        clock = loop.time if isinstance(loop, VirtualLoop) else time.perf_counter
        gateway = create_gateway(settings(upstream.url, **sections), logger=records.logger, clock=clock)
        server = await _listen(gateway)
        stage = Stage(gateway, server, upstream, records)
        try:
            yield stage
        finally:
            await _leave(stage)


async def _listen(gateway: Gateway) -> uvicorn.Server:
    refused = gateway.metrics.refused
    protocol = protocol_factory(gateway.limits, on_refused=lambda error, _: refused(error.status))
    config = uvicorn.Config(
        gateway.api, host="127.0.0.1", port=0, http=protocol, ws="none", lifespan="off", log_config=None
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    await server.on_tick(0)
    return server


async def _leave(stage: Stage) -> None:
    state = stage.server.server_state
    for listener in stage.server.servers:
        listener.close()
    for connection in list(state.connections):
        connection.abort()  # type: ignore[union-attr]  # ours has it
    async with asyncio.timeout(10):
        while state.connections or state.tasks:
            await asyncio.sleep(0)
    await stage.gateway.fleet.aclose()
    await rounds(3)
    assert not stage.gateway.api.open
    assert all(replica.inflight == 0 for up in stage.gateway.fleet.upstreams.values() for replica in up.replicas)


# What upstreams say.


def event(data: Mapping[str, Any] | str) -> bytes:
    """One event of a stream."""
    return b"data: " + (data.encode() if isinstance(data, str) else orjson.dumps(data)) + b"\n\n"


def delta(content: str | None = None, *, finish: str | None = None, **more: Any) -> bytes:
    """One event with a piece of an answer."""
    piece = {} if content is None else {"content": content}
    choices = [{"index": 0, "delta": piece, "finish_reason": finish}]
    return event({"id": "c-1", "object": "chat.completion.chunk", "model": "upstream-m", "choices": choices, **more})


ROLE = event({"id": "c-1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
USAGE = event({"id": "c-1", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}})
DONE = b"data: [DONE]\n\n"

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def frame(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def streamed(*events: bytes) -> list[bytes]:
    """A whole stream, in pieces that are read one by one."""
    return [STREAM_HEAD, *(frame(one) for one in events), END]
