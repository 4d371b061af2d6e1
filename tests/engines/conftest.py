"""What the tests of engines share: one real Triton, and one real gateway in front of it, over HTTP and over gRPC."""

from collections.abc import AsyncIterator, Iterator

import openai
import pytest

from tests.engines.triton import Triton, free_ports
from tests.support.processes import PATIENCE, GatewayProcess
from tests.support.processes import REAL as REAL_FOLDER

TEMPLATE = REAL_FOLDER / "tiny-qwen2"

CONFIG = """\
server: {{host: 127.0.0.1, port: 0, admin_port: 0, drain_seconds: 1}}
auth: {{required: false}}
retry: {{attempts: 1}}
upstreams:
  http: {{kind: triton, url: "{http}", template: "{template}", health: {{interval: 0.2}}, load: {load}}}
  grpc: {{kind: triton, url: "{grpc}", template: "{template}", health: {{interval: 0.2}}, load: {load}}}
  vllm-http: {{kind: triton, url: "{http}", template: "{template}", profile: vllm_backend}}
  vllm-grpc: {{kind: triton, url: "{grpc}", template: "{template}", profile: vllm_backend}}
  trt-http: {{kind: triton, url: "{http}", template: "{template}", profile: tensorrtllm, cumulative: true}}
  trt-grpc: {{kind: triton, url: "{grpc}", template: "{template}", profile: tensorrtllm, cumulative: true}}
  once-http: {{kind: triton, url: "{http}", template: "{template}/chat_template.jinja", tensors: {once}}}
  once-grpc: {{kind: triton, url: "{grpc}", template: "{template}/chat_template.jinja", tensors: {once}}}
  bare: {{kind: triton, url: "{http}"}}
  half-http: {{kind: triton, urls: ["http://127.0.0.1:{nobody}", "{http}"], template: "{template}", retry: {{attempts: 2}}}}
  half-grpc: {{kind: triton, urls: ["grpc://127.0.0.1:{nobody}", "{grpc}"], template: "{template}", retry: {{attempts: 2}}}}
models:
  llm-http: {{targets: [{{upstream: http, model: llm}}]}}
  llm-grpc: {{targets: [{{upstream: grpc, model: llm}}]}}
  vllm-http: {{targets: [{{upstream: vllm-http, model: vllm}}]}}
  vllm-grpc: {{targets: [{{upstream: vllm-grpc, model: vllm}}]}}
  trt-http: {{targets: [{{upstream: trt-http, model: trt}}]}}
  trt-grpc: {{targets: [{{upstream: trt-grpc, model: trt}}]}}
  once-http: {{targets: [{{upstream: once-http, model: once}}]}}
  once-grpc: {{targets: [{{upstream: once-grpc, model: once}}]}}
  nope-http: {{targets: [{{upstream: http, model: nope}}]}}
  nope-grpc: {{targets: [{{upstream: grpc, model: nope}}]}}
  half-http: {{targets: [{{upstream: half-http, model: llm}}]}}
  half-grpc: {{targets: [{{upstream: half-grpc, model: llm}}]}}
  bare: {{targets: [{{upstream: bare, model: llm}}]}}
"""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    with Triton(tmp_path_factory.mktemp("triton")) as triton:
        yield triton


@pytest.fixture(scope="session")
def gateway(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    config = tmp_path_factory.mktemp("gateway") / "gateway.yaml"
    none = "{stream: null, temperature: null, top_p: null, stop: null, finish_reason: null}"
    (nobody,) = free_ports(1)
    load = f"{{port: {triton.metrics}, interval: 0.1}}"
    ways = {"http": triton.url, "grpc": triton.grpc_url}
    config.write_text(CONFIG.format(**ways, template=TEMPLATE, once=none, nobody=nobody, load=load))
    with GatewayProcess(config) as gateway:
        yield gateway
    assert gateway.code == 0, list(gateway.err)


@pytest.fixture(params=["http", "grpc"])
def way(request: pytest.FixtureRequest) -> str:
    """How the gateway goes to Triton: the end of a model's name."""
    return str(request.param)


@pytest.fixture(scope="session")
async def sdk(gateway: GatewayProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key="none", timeout=PATIENCE, max_retries=0
    ) as client:
        yield client
