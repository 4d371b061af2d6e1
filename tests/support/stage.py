"""A whole gateway on a real port, with a scripted upstream behind it, in the test's own event loop.

Only its end is the test's: log lines are kept instead of printed. Everything between the two sockets is the product.
"""

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

import orjson
import structlog
import uvicorn
from prometheus_client.samples import Sample
from structlog.testing import capture_logs

from gateway.api.protocol import protocol_factory
from gateway.app import Gateway, create_gateway
from gateway.call import Clock
from gateway.config import Settings
from gateway.transport import Engine
from tests.support.client import Caller, Response, rounds
from tests.support.clock import VirtualLoop
from tests.support.secrets import SECRETS, watch
from tests.support.upstream import Action, Peer, Script, ScriptedUpstream, forever, read, reply, send

KEY = SECRETS["caller_key"]
UPSTREAM_KEY = SECRETS["upstream_key"]


class Records:
    """The log, as what it was rendered from."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.logger = structlog.wrap_logger(
            self, processors=[structlog.stdlib.add_log_level], wrapper_class=structlog.make_filtering_bound_logger(20)
        )

    def info(self, **event: Any) -> None:
        watch.see("log", event)
        self.lines.append(event.pop("fields", {}) | event)

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


class Cast(Stage):
    """A stage with several upstreams. `replicas`: those of each, as they were given; nobody where none listens.

    `events`: what was logged beside the requests.
    """

    events: Sequence[Mapping[str, Any]] = ()

    def __init__(
        self,
        gateway: Gateway,
        server: uvicorn.Server,
        replicas: Mapping[str, Sequence[ScriptedUpstream | None]],
        records: Records,
    ) -> None:
        everybody = [replica for ones in replicas.values() for replica in ones if replica is not None]
        super().__init__(gateway, server, everybody[0], records)
        self.replicas = replicas
        self._everybody = everybody

    @property
    def seen(self) -> dict[str, list[int]]:
        """How many requests each replica has had."""
        return {
            name: [0 if replica is None else len(replica.requests) for replica in ones]
            for name, ones in self.replicas.items()
        }

    async def seen_by(self, requests: int) -> None:
        """Wait until there have been so many requests in all, wherever they went."""
        async with asyncio.timeout(10):
            while sum(len(replica.requests) for replica in self._everybody) < requests:
                await asyncio.sleep(0)

    async def ask(
        self, body: Mapping[str, Any] | bytes, path: str = "/v1/chat/completions", **headers: str
    ) -> Response:
        """One request and its answer, which by then is also recorded."""
        response = await super().ask(body, path, **headers)
        request_id = response.headers["x-request-id"]
        async with asyncio.timeout(10):
            while any(exchange.request_id == request_id for exchange in self.gateway.api.open):
                await asyncio.sleep(0)
        return response

    async def times(self, number: int, **members: Any) -> list[Response]:
        """So many requests, one after the other."""
        return [await self.ask(chat(**members)) for _ in range(number)]

    def state(self, upstream: str = "up", replica: int = 0) -> str:
        """How a replica stands, by its metric: one state, and only one."""
        name = self.gateway.fleet.upstreams[upstream].replicas[replica].name
        found = [
            sample.labels["state"]
            for sample in self._samples()
            if sample.name == "gateway_upstream_state"
            and (sample.labels["upstream"], sample.labels["replica"]) == (upstream, name)
            and sample.value == 1
        ]
        assert len(found) == 1
        return found[0]

    def attempts(self, **labels: str) -> float:
        """How many attempts have been counted."""
        return self.sample("gateway_upstream_attempts_total", **labels)


class Chance(random.Random):
    """Chance that always falls `at` the same place in [0, 1). At 0.0 the first of everything is taken, and no wait is long."""

    def __init__(self, at: float) -> None:
        super().__init__(0)
        self.at = at

    def random(self) -> float:
        return self.at


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
    return {"model": "m", "messages": [{"role": "user", "content": "planted-prompt"}], **members}


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
        gateway = create_gateway(settings(upstream.url, **sections), logger=records.logger, clock=_clock())
        server = await _listen(gateway)
        stage = Stage(gateway, server, upstream, records)
        try:
            yield stage
        finally:
            await _leave(stage)


@contextlib.asynccontextmanager
async def staged_many(
    scripts: Mapping[str, Sequence[Script | None]], *, chance: random.Random | float = 0.0, **sections: Any
) -> AsyncIterator[Cast]:
    """Serve, with an upstream of each name that has a replica for each script, followed on every connection.

    Where the script is None nobody listens. `sections` go into the settings; what `upstreams` holds is added to what is
    known of the one of that name; with `ends` each replica's URL is several, with one of these at its end. Model `m` has all upstreams as targets; by `chance` the first one comes first.
    """
    async with contextlib.AsyncExitStack() as stack:
        replicas = {name: [await _enter(stack, script) for script in ones] for name, ones in scripts.items()}
        more = sections.pop("upstreams", {})
        upstreams = {name: _upstream([url for _, url in ones]) | more.get(name, {}) for name, ones in replicas.items()}
        for upstream in upstreams.values():
            upstream["urls"] = [f"{url}{end}" for end in upstream.pop("ends", [""]) for url in upstream["urls"]]
        document = {
            "auth": {"keys": [{"name": "caller", "key": KEY}]},
            "upstreams": upstreams,
            "models": {"m": {"targets": [{"upstream": name} for name in scripts]}},
            **sections,
        }
        records = Records()
        rng = Chance(chance) if isinstance(chance, float) else chance
        gateway = create_gateway(Settings.model_validate(document), logger=records.logger, rng=rng, clock=_clock())
        server = await _listen(gateway)
        cast = Cast(gateway, server, {name: [one for one, _ in ones] for name, ones in replicas.items()}, records)
        try:
            with capture_logs() as cast.events:
                yield cast
        finally:
            watch.see("log", cast.events)
            await _leave(cast)


async def _enter(stack: contextlib.AsyncExitStack, script: Script | None) -> tuple[ScriptedUpstream | None, str]:
    """A replica and its URL. A port at which nobody listens is kept, so that nobody else is given it."""
    if script is not None:
        replica = await stack.enter_async_context(ScriptedUpstream(script))
        return replica, replica.url
    port = stack.enter_context(socket.socket())
    port.bind(("127.0.0.1", 0))
    return None, f"http://127.0.0.1:{port.getsockname()[1]}"


def _upstream(urls: Iterable[str]) -> dict[str, Any]:
    return {"kind": "openai", "urls": [f"{url}/v1" for url in urls], "api_key": UPSTREAM_KEY}


def _clock() -> Clock:
    loop = asyncio.get_running_loop()
    return loop.time if isinstance(loop, VirtualLoop) else time.perf_counter


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
    await stage.settled()
    await stage.gateway.fleet.aclose()
    if stage.gateway.spans is not None:
        stage.gateway.spans.close()
        assert await asyncio.to_thread(stage.gateway.spans.join, 10)
    await rounds(3)
    await stage.gateway.metrics.page()  # which is looked at for secrets
    assert not stage.gateway.api.open
    upstreams = stage.gateway.fleet.upstreams.values()
    assert all(replica.inflight == 0 for upstream in upstreams for replica in upstream.replicas)
    assert not any(upstream.queue for upstream in upstreams)


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


JSON = "content-type: application/json"


def served(stream: bool = False, content: str = "hello") -> Action:
    """A whole answer, as it was asked for."""
    if stream:
        return send(*streamed(ROLE, delta(content), delta(finish="stop"), USAGE, DONE))
    message = {"role": "assistant", "content": content}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return reply(orjson.dumps({"id": "c-1", "object": "chat.completion", "choices": choices}), headers=[JSON])


def refused(status: str, *headers: str, **error: Any) -> Action:
    """An answer of OpenAI's that tells of an error."""
    members = {"message": "planted-words", "type": "server_error", "param": None, "code": None, **error}
    return reply(orjson.dumps({"error": members}), status=status, headers=[JSON, *headers])


def answering(*actions: Action, times: list[float] | None = None) -> Script:
    """To each request the next of `actions`, and the last of them to all that come after it.

    A script that several replicas share goes on with each request, whichever of them it comes to. `times` is given the
    loop's time of each.
    """
    left = list(actions)

    async def act(peer: Peer) -> None:
        if times is not None:
            times.append(asyncio.get_running_loop().time())
        await (left.pop(0) if len(left) > 1 else left[0])(peer)

    return [forever(read(), act)]
