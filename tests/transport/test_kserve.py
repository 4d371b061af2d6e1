"""gRPC as a way to travel: the generate extension's JSON in, its events and errors out, and httpx's exceptions.

The server is gRPC's own, and says what a real Triton has said (tests/dialects/recordings); the real one is in tests/engines.
"""

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest

from gateway.transport import Engine, FirstByteTimeout, IdleTimeout, PreparedRequest, Target, TransportSettings
from gateway.transport.kserve import MissingExtra, open_kserve
from gateway.wire import kserve
from tests.support.upstream import ScriptedUpstream, read, reply
from tests.transport.exchanges import fetch, request, whole
from tests.wire.test_kserve import RECORDED

SERVICE = "/inference.GRPCInferenceService/"
BODY = json.dumps({"text_input": "Grüße aus", "stream": True, "max_tokens": 2}).encode()
TRACE = [(b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"), (b"tracestate", b"a=1")]
Say = Callable[[Any], Any]


class Server(grpc.GenericRpcHandler):  # type: ignore[misc]  # the library has no types
    """Follows a script: `says`, from the call's context, is what each inference is answered with."""

    def __init__(self, says: Callable[[Any], AsyncIterator[bytes]]) -> None:
        self.says = says
        self.asked: list[bytes] = []
        self.metadata: list[dict[str, str]] = []
        self.questions: list[str] = []
        self.ready = True
        self.cancelled = asyncio.Event()
        self.unknown: set[bytes] = set()

    def service(self, details: Any) -> Any:
        name = details.method.removeprefix(SERVICE)
        self.metadata.append(dict(details.invocation_metadata))
        if name == "ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(self._infer)
        self.questions.append(name)
        return grpc.unary_unary_rpc_method_handler(self._answer if name == "ModelMetadata" else self._ready)

    async def _answer(self, message: bytes, context: Any) -> bytes:
        if message != kserve.named("llm"):
            await context.abort(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'nope' is not found")
        return RECORDED["llm_metadata"]

    async def _ready(self, _message: bytes, _context: Any) -> bytes:
        return b"\x08\x01" if self.ready else b""

    async def _infer(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.asked += [message async for message in messages]
        try:
            async for message in self.says(context):
                yield message
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def saying(*names: str) -> Callable[[Any], AsyncIterator[bytes]]:
    async def says(_context: Any) -> AsyncIterator[bytes]:
        for name in names:
            yield RECORDED[name]

    return says


async def endless(_context: Any) -> AsyncIterator[bytes]:
    yield RECORDED["llm_1"]
    await asyncio.Event().wait()


async def silent(_context: Any) -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


@contextlib.asynccontextmanager
async def served(
    says: Callable[[Any], AsyncIterator[bytes]],
) -> AsyncIterator[tuple[Server, str, httpx.AsyncBaseTransport]]:
    """A server, its URL and a transport."""
    script, server = Server(says), grpc.aio.server()
    server.add_generic_rpc_handlers((script,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    transport = open_kserve(TransportSettings())
    try:
        yield script, f"grpc://127.0.0.1:{port}", transport
    finally:
        await transport.aclose()
        await server.stop(None)


def generate(url: str, body: bytes = BODY, model: str = "llm", **timeouts: float) -> httpx.Request:
    return request(f"{url}/v2/models/{model}/generate_stream", body, timeouts)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", autouse=True)
async def one_loop() -> AsyncIterator[None]:
    """An open fixture keeps its event loop: gRPC's library hands what is left of one loop's calls to the next, and fails."""
    yield
    await asyncio.sleep(0)


async def test_responses_come_as_the_events_of_the_generate_extension() -> None:
    async with served(saying("llm_1", "llm_2")) as (script, url, transport):
        response = await transport.handle_async_request(generate(url))
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = (await whole(response)).decode().split("\n\n")
        told = {"model_name": "llm", "model_version": "1", "id": "x"}
        assert [json.loads(event.removeprefix("data: ")) for event in events[:-1]] == [
            told | {"text_output": "Grüße", "finish_reason": ""},
            told | {"text_output": " aus", "finish_reason": "stop"},
        ]
        inputs = kserve.read_inputs(RECORDED["llm_metadata"])
        assert script.asked == [kserve.infer_request("llm", json.loads(BODY), inputs)]


async def test_a_models_inputs_are_asked_for_once_and_again_after_an_error() -> None:
    async with served(saying("trt_error")) as (script, url, transport):
        for expected in (1, 2):
            await fetch(transport, generate(url))
            assert script.questions.count("ModelMetadata") == expected
        script.says = saying("llm_1")
        for _ in range(3):
            await fetch(transport, generate(url))
        assert script.questions.count("ModelMetadata") == 3


async def test_an_error_first_is_400_and_later_an_event() -> None:
    error = b'data: {"error":"failed before the first word"}\n\n'
    async with served(saying("trt_error")) as (script, url, transport):
        assert await fetch(transport, generate(url)) == (400, error)
        script.says = saying("llm_1", "trt_error")
        status, body = await fetch(transport, generate(url))
        assert status == 200
        assert body.endswith(error)


async def test_a_model_that_is_not_there_is_404() -> None:
    async with served(saying()) as (_, url, transport):
        status, body = await fetch(transport, generate(url, model="nope"))
        assert (status, json.loads(body)) == (404, {"error": "Request for unknown model: 'nope' is not found"})


async def test_a_body_that_no_tensor_takes_is_500() -> None:
    async with served(saying()) as (_, url, transport):
        for body in (b'{"text_input":5}', b"nonsense"):
            status, answer = await fetch(transport, generate(url, body))
            assert status == 500
            assert b"error" in answer


async def test_an_answer_of_nothing_is_an_empty_stream() -> None:
    async with served(saying()) as (_, url, transport):
        assert await fetch(transport, generate(url)) == (200, b"")


async def test_questions_of_health_are_answered_as_over_http() -> None:
    async with served(saying()) as (script, url, transport):
        for path, question in (
            ("/v2/health/ready", "ServerReady"),
            ("/v2/health/live", "ServerLive"),
            ("/v2/models/llm/ready", "ModelReady"),
        ):
            for script.ready, status in ((True, 200), (False, 400)):
                response = await transport.handle_async_request(request(url + path, None, method="GET"))
                assert response.status_code == status
                assert [part async for part in response.aiter_raw()] in ([], [b""])
            assert script.questions[-1] == question
        assert (await fetch(transport, request(f"{url}/v2/models", None, method="GET")))[0] == 404


async def test_who_asks_and_which_request_it_is_goes_along_and_nothing_else() -> None:
    async with served(saying("llm_1")) as (script, url, transport):
        target = Target("POST", httpx.URL(f"{url}/v2/models/llm/generate_stream"), [(b"authorization", b"Bearer k")])
        sent = PreparedRequest(target, [(b"x-request-id", b"r-1"), (b"x-other", b"o"), *TRACE], BODY, {})
        await fetch(transport, sent)
        seen = script.metadata[-1]
        assert (seen["authorization"], seen["x-request-id"]) == ("Bearer k", "r-1")
        assert [(name.encode(), seen[name].encode()) for name in ("traceparent", "tracestate")] == TRACE
        assert "x-other" not in seen


async def test_a_stream_given_up_is_cancelled_there() -> None:
    async with served(endless) as (script, url, transport):
        response = await transport.handle_async_request(generate(url))
        stream: Any = response.stream
        assert await anext(aiter(stream))
        await stream.aclose()
        async with asyncio.timeout(10):
            await script.cancelled.wait()


async def test_a_call_cancelled_before_its_first_word_is_cancelled_there() -> None:
    async with served(silent) as (script, url, transport):
        asking = asyncio.ensure_future(transport.handle_async_request(generate(url)))
        async with asyncio.timeout(10):
            while not script.asked:
                await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await script.cancelled.wait()


async def test_silence_has_its_exceptions() -> None:
    async with served(silent) as (script, url, transport):
        with pytest.raises(FirstByteTimeout):
            await fetch(transport, generate(url, first_byte=0.05))
        script.says = endless
        with pytest.raises(IdleTimeout):
            await fetch(transport, generate(url, idle=0.05))


async def test_a_server_that_stops_within_an_answer_is_a_broken_connection() -> None:
    async def says(context: Any) -> AsyncIterator[bytes]:
        yield RECORDED["llm_1"]
        await context.abort(grpc.StatusCode.INTERNAL, "secret words")

    async with served(says) as (_, url, transport):
        with pytest.raises(httpx.ReadError) as failed:
            await fetch(transport, generate(url))
        assert "secret" not in str(failed.value)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.UNAVAILABLE, 503),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
        (grpc.StatusCode.UNAUTHENTICATED, 401),
        (grpc.StatusCode.INTERNAL, 500),
        (grpc.StatusCode.INVALID_ARGUMENT, 400),
    ],
)
async def test_a_status_of_grpc_is_one_of_http(code: grpc.StatusCode, status: int) -> None:
    async def says(context: Any) -> AsyncIterator[bytes]:
        await context.abort(code, "words")
        yield b""

    async with served(says) as (_, url, transport):
        assert await fetch(transport, generate(url)) == (status, b'{"error":"words"}')


async def test_what_is_no_message_is_a_protocol_error() -> None:
    async def says(_context: Any) -> AsyncIterator[bytes]:
        yield RECORDED["llm_1"]
        yield b"\x12\xff"

    async with served(says) as (script, url, transport):
        with pytest.raises(httpx.RemoteProtocolError):
            await fetch(transport, generate(url))

        async def at_once(_context: Any) -> AsyncIterator[bytes]:
            yield b"\x12\xff"

        script.says = at_once
        with pytest.raises(httpx.RemoteProtocolError):
            await fetch(transport, generate(url))


async def test_nobody_there_is_a_connect_error_and_somebody_later_is_found() -> None:
    holder = socket.create_server(("127.0.0.1", 0))
    port = holder.getsockname()[1]
    holder.close()
    transport = open_kserve(TransportSettings())
    for _ in range(3):
        with pytest.raises(httpx.ConnectError):
            await fetch(transport, generate(f"grpc://127.0.0.1:{port}"))
    await transport.aclose()


async def test_a_connection_that_is_never_made_is_a_connect_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections, and never speaks HTTP/2
        transport = open_kserve(TransportSettings())
        with pytest.raises(httpx.ConnectTimeout):
            await fetch(transport, generate(f"grpc://127.0.0.1:{mute.getsockname()[1]}", connect=0.05))
        await transport.aclose()


async def test_what_waits_for_a_connection_when_all_are_closed_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        transport = open_kserve(TransportSettings())
        asking = asyncio.ensure_future(fetch(transport, generate(f"grpc://127.0.0.1:{mute.getsockname()[1]}")))
        while not transport._channels:
            await asyncio.sleep(0)
        await transport.aclose()
        with pytest.raises(httpx.TransportError):
            await asking


async def test_the_engine_of_http_refuses_such_urls() -> None:
    engine = Engine(TransportSettings())
    with pytest.raises(httpx.UnsupportedProtocol):
        await fetch(engine, generate("grpc://127.0.0.1:1"))
    await engine.aclose()


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    monkeypatch.setitem(sys.modules, "grpc.aio", None)
    with pytest.raises(MissingExtra, match="install gateway"):
        open_kserve(TransportSettings())


async def test_the_servers_metrics_are_fetched_over_http() -> None:
    async with ScriptedUpstream([read(), reply(b"nv_inference_count 1\n")]) as page:
        transport = open_kserve(TransportSettings())
        fetched = await fetch(transport, request(f"{page.url}/metrics", None, method="GET"))
        assert fetched == (200, b"nv_inference_count 1\n")
        await transport.aclose()
