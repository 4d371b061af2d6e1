"""One real gateway in front of a real API, for each of which there is a key."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import openai
import pytest

from tests.live.vendors import Vendor, named
from tests.support.processes import GatewayProcess

PATIENCE = 60.0  # seconds
NOBODY = "no-such-model-17"

CONFIG = """\
server: {{host: 127.0.0.1, port: 0, admin_port: 0, drain_seconds: 1}}
auth: {{required: false}}
upstreams:
  real: {{kind: {kind}, url: "${{LIVE_URL}}", api_key: "${{LIVE_KEY}}"}}
  stranger: {{kind: {kind}, url: "${{LIVE_URL}}", api_key: sk-nobodys-0123456789}}
models:
  stranger: {{targets: [{{upstream: stranger, model: {chat}}}]}}
  "*": {{targets: [{{upstream: real}}]}}
"""

_spent: dict[str, tuple[int, int, int]] = {}


class Stage(NamedTuple):
    """A vendor, and the gateway before it."""

    vendor: Vendor
    gateway: GatewayProcess
    config: Path
    environ: dict[str, str]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", params=["openai", "qwen"])
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    try:
        vendor = named(request.param)
    except LookupError as missing:
        pytest.skip(str(missing))
    config = tmp_path_factory.mktemp("gateway") / "gateway.yaml"
    config.write_text(CONFIG.format(kind=vendor.kind, chat=vendor.chat))
    environ = {"LIVE_URL": vendor.url, "LIVE_KEY": vendor.key}
    with GatewayProcess(config, environ) as gateway:
        yield Stage(vendor, gateway, config, environ)
    records = gateway.records()
    tokens = [sum(record[name] or 0 for record in records) for name in ("input_tokens", "output_tokens")]
    _spent[vendor.kind] = (len(records), tokens[0], tokens[1])
    assert [line for line in (*gateway.out, *gateway.err) if vendor.key in line] == []


@pytest.fixture
async def sdk(stage: Stage) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{stage.gateway.url}/v1", api_key="none", timeout=PATIENCE, max_retries=0
    ) as client:
        yield client


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What it has cost."""
    for kind, (calls, put, got) in _spent.items():
        terminalreporter.write_line(f"{kind}: {calls} calls, {put} tokens in, {got} tokens out")
