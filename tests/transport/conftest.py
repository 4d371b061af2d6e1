"""What the transport's tests share: both loops, both transports, and requests with deadlines that can't hang a test."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from gateway.transport import Engine, TransportSettings, open_transport

Open = Callable[[TransportSettings], httpx.AsyncBaseTransport]


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine(TransportSettings())
    yield engine
    await engine.aclose()


@pytest.fixture(params=["own", "httpx"])
async def transport(request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncBaseTransport]:
    transport = open_transport(TransportSettings(engine=request.param))
    yield transport
    await transport.aclose()
