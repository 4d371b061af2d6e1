"""How the process leaves: a real one, told to go by real signals, with a stream open through it."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Caller
from tests.support.processes import GatewayProcess
from tests.support.stage import DONE, END, STREAM_HEAD, chat, delta, frame, request
from tests.support.upstream import ScriptedUpstream, read, send, wait_for

CONFIG = """\
server: {{host: 127.0.0.1, port: 0, admin_port: 0, {server}}}
auth: {{required: false}}
upstreams: {{up: {{kind: openai, url: "{url}/v1"}}}}
models: {{m: {{targets: [{{upstream: up}}]}}}}
"""


class Leaving:
    """A gateway process, and a caller whose stream has begun."""

    def __init__(self, process: GatewayProcess, caller: Caller) -> None:
        self.process = process
        self.caller = caller
        self.port = int(process.url.rpartition(":")[2])

    def tell(self, number: signal.Signals) -> None:
        os.kill(self.process._child.pid, number)

    async def said(self, event: str) -> str:
        return await asyncio.to_thread(self.process.out.wait, lambda line: f'"event":"{event}"' in line)

    async def code(self) -> int:
        return await asyncio.to_thread(self.process._child.wait, 10)

    async def get(self, path: str) -> int:
        async with await Caller.connect(self.port) as caller:
            await caller.send(f"GET {path} HTTP/1.1\r\nhost: g\r\n\r\n".encode())
            return (await caller.response()).status

    async def refused(self) -> bool:
        """Wait until nobody listens."""
        async with asyncio.timeout(10):
            while self._connects():
                await asyncio.sleep(0)
        return True

    def _connects(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0


Leave = Callable[..., contextlib.AbstractAsyncContextManager[Leaving]]


@pytest.fixture
def leaving(tmp_path: Path) -> Leave:
    @contextlib.asynccontextmanager
    async def start(go_on: asyncio.Event, **server: Any) -> AsyncIterator[Leaving]:
        rest = send(frame(delta("b")), frame(DONE), END)
        async with ScriptedUpstream([read(), send(STREAM_HEAD, frame(delta("a"))), wait_for(go_on), rest]) as upstream:
            config = tmp_path / "gateway.yaml"
            words = ", ".join(f"{name}: {value}" for name, value in server.items())
            config.write_text(CONFIG.format(url=upstream.url, server=words))
            process = await asyncio.to_thread(GatewayProcess(config).__enter__)
            try:
                async with await Caller.connect(int(process.url.rpartition(":")[2])) as caller:
                    await caller.send(request(chat(stream=True)))
                    await caller.read_until(delta("a"))
                    yield Leaving(process, caller)
            finally:
                go_on.set()
                await asyncio.to_thread(process.stop)

    return start


async def test_an_open_stream_is_let_to_its_end_and_the_exit_is_clean(leaving: Leave) -> None:
    go_on = asyncio.Event()
    async with leaving(go_on, drain_seconds=30) as gateway:
        gateway.tell(signal.SIGTERM)
        assert await gateway.refused()
        go_on.set()

        assert DONE in await gateway.caller.read_to_end()
        assert await gateway.code() == 0
        assert '"outcome":"served"' in await gateway.said("request")
        await gateway.said("stopped")


async def test_while_it_lingers_it_takes_calls_and_says_that_it_is_not_ready(leaving: Leave) -> None:
    async with leaving(asyncio.Event(), linger_seconds=30) as gateway:
        assert await gateway.get("/readyz") == 200
        gateway.tell(signal.SIGTERM)
        await gateway.said("draining")

        assert await gateway.get("/readyz") == 503
        assert await gateway.get("/healthz") == 200
        assert await gateway.get("/v1/models") == 200


async def test_what_is_open_after_the_drain_is_told_in_band(leaving: Leave) -> None:
    async with leaving(asyncio.Event(), drain_seconds=0.2) as gateway:
        gateway.tell(signal.SIGTERM)

        rest = await gateway.caller.read_to_end()
        assert b'"code":"server_shutting_down"' in rest
        assert b"[DONE]" not in rest
        assert rest.endswith(b"0\r\n\r\n")
        assert await gateway.code() == 0
        assert '"end_reason":"server_shutting_down"' in await gateway.said("request")


@pytest.mark.parametrize("phase", [{"linger_seconds": 60}, {"drain_seconds": 60}])
async def test_a_second_signal_hurries(leaving: Leave, phase: dict[str, int]) -> None:
    async with leaving(asyncio.Event(), **phase) as gateway:
        gateway.tell(signal.SIGTERM)
        await gateway.said("draining")
        gateway.tell(signal.SIGINT)

        assert b'"code":"server_shutting_down"' in await gateway.caller.read_to_end()
        assert await gateway.code() == 0
