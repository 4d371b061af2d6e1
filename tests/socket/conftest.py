"""A real uvicorn Server around our protocol, on both event loops."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvicorn

from gateway.api.protocol import Connection, Limits, protocol_factory
from gateway.errors import GatewayError
from tests.support.client import Caller, rounds

Start = Callable[..., Awaitable["Site"]]


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


class Site:
    """A listening server. `refused`, `refused_ids`: what the hook was told."""

    def __init__(self, server: uvicorn.Server, hook: list[tuple[GatewayError, str]]) -> None:
        self.server = server
        self.state = server.server_state
        self._hook = hook
        self.port: int = server.servers[0].sockets[0].getsockname()[1]

    @property
    def refused(self) -> list[GatewayError]:
        return [error for error, _ in self._hook]

    @property
    def refused_ids(self) -> list[str]:
        return [request_id for _, request_id in self._hook]

    async def caller(self, **options: Any) -> Caller:
        return await Caller.connect(self.port, **options)

    async def connection(self) -> Connection:
        """The only connection, once it is there."""
        while not self.state.connections:
            await asyncio.sleep(0)
        (only,) = self.state.connections
        assert isinstance(only, Connection)
        return only

    async def quiet(self) -> None:
        """Wait until no connection and no task is left."""
        async with asyncio.timeout(10):
            while self.state.connections or self.state.tasks:
                await asyncio.sleep(0)

    async def stop(self) -> None:
        for listener in self.server.servers:
            listener.close()
        for connection in list(self.state.connections):
            assert isinstance(connection, Connection)
            connection.abort()
        for task in list(self.state.tasks):
            task.cancel()
        await self.quiet()
        await rounds(3)


@pytest.fixture
async def serve() -> AsyncIterator[Start]:
    sites: list[Site] = []

    async def start(app: Any, tls: ssl.SSLContext | None = None, **limits: Any) -> Site:
        hook: list[tuple[GatewayError, str]] = []
        config = uvicorn.Config(
            app,
            host="127.0.0.1",
            port=0,
            http=protocol_factory(Limits(**limits), on_refused=lambda *told: hook.append(told)),
            ws="none",
            lifespan="off",
            log_config=None,
            proxy_headers=False,
            ssl_context_factory=None if tls is None else lambda *_: tls,
        )
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup()
        await server.on_tick(0)
        sites.append(Site(server, hook))
        return sites[-1]

    yield start
    for site in sites:
        await site.stop()
