"""Triton's gRPC service as if it were its HTTP one: the generate extension's JSON in, its events and errors out.

So that gRPC is a way to travel and not another dialect. An inference is one ModelStreamInfer, the only call that models
which answer more than once can be given; giving it up cancels it there. gRPC's library is an extra of this package, and is
imported when the first such transport is opened. It must not know chat, prompts or what a tensor means.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from math import inf
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import certifi
import httpx
import orjson

from gateway.transport.deadlines import Deadlines
from gateway.transport.engine import Engine
from gateway.transport.errors import FirstByteTimeout, IdleTimeout
from gateway.transport.request import Origin
from gateway.transport.settings import TransportSettings
from gateway.transport.waits import Waits, waits_of
from gateway.wire import kserve

_SERVICE = "/inference.GRPCInferenceService/"
_MODEL = "/v2/models/"
_GENERATE = "/generate_stream"
_QUESTIONS = {"/v2/health/live": "ServerLive", "/v2/health/ready": "ServerReady"}
_CARRIED = ("authorization", "x-request-id")
_JSON = [(b"content-type", b"application/json")]
_EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]
_LARGEST = 32 << 20  # bytes of a message
_BACKOFF = 100  # milliseconds


class MissingExtra(Exception):
    """gRPC is not installed. Its text is one line, for whoever wrote the config."""


def open_kserve(settings: TransportSettings) -> "KServe":
    """The transport for grpc:// and grpcs:// URLs. Raises MissingExtra."""
    try:
        import grpc.aio  # noqa: PLC0415  # an extra
    except ImportError:
        raise MissingExtra("grpc:// needs grpcio: install gateway[triton]") from None
    return KServe(grpc, settings)


class KServe(httpx.AsyncBaseTransport):
    """A channel for each origin, on the loop that first uses it. `grpc`: the library.

    Of a request's extensions it reads `timeout` (connect, first_byte, idle) and `waits`; a deadline for all of it is the caller's.
    """

    def __init__(self, grpc: Any, settings: TransportSettings) -> None:
        self._grpc = grpc
        self._settings = settings
        self._http = Engine(TransportSettings())
        self._channels: dict[Origin, Any] = {}
        self._inputs: dict[tuple[Origin, str], dict[str, kserve.Tensor]] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send, and return when it is known whether there is an answer. Raises httpx.TransportError."""
        if request.url.scheme == "http":  # its metrics, which are nowhere else
            return await self._http.handle_async_request(request)
        origin, path = Origin.of(request.url), request.url.path
        deadlines = Deadlines(request.extensions)
        channel = await self._channel(origin, deadlines, waits_of(request))
        metadata = tuple((name, request.headers[name]) for name in _CARRIED if name in request.headers)
        call = _Call(self._grpc, channel, metadata)
        try:
            async with _within(deadlines.first_byte, FirstByteTimeout):
                if path in _QUESTIONS:
                    return _status(await call.ask(_QUESTIONS[path], b""))
                model, _, what = unquote(path.removeprefix(_MODEL)).rpartition("/")
                if what == "ready":
                    return _status(await call.ask("ModelReady", kserve.named(model)))
                if what == _GENERATE[1:] and path.startswith(_MODEL):
                    return await self._generate(origin, call, model, request)
        except self._grpc.aio.AioRpcError as failure:
            return self._failed(channel, failure)
        except ValueError:
            raise httpx.RemoteProtocolError("the upstream sent what is no message") from None
        return _error(404, "there is nothing at this path")

    async def aclose(self) -> None:
        """Close every connection; calls that are under way are cancelled."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close(None)
        await self._http.aclose()

    async def _channel(self, origin: Origin, deadlines: Deadlines, waits: Waits) -> Any:
        """A channel with a connection."""
        channel = self._channels.get(origin)
        if channel is None:
            channel = self._channels[origin] = self._open(origin, deadlines.connect)
        if channel.get_state(try_to_connect=True) is not self._grpc.ChannelConnectivity.READY:
            with waits.waiting("connect"):
                async with _within(deadlines.connect, httpx.ConnectTimeout):
                    await self._connected(channel)
        return channel

    async def _connected(self, channel: Any) -> None:
        states = self._grpc.ChannelConnectivity
        while (state := channel.get_state(try_to_connect=True)) is not states.READY:
            if state in (states.TRANSIENT_FAILURE, states.SHUTDOWN):
                raise httpx.ConnectError("no connection to the upstream")
            await channel.wait_for_state_change(state)

    def _open(self, origin: Origin, patience: float) -> Any:
        milliseconds = 20_000 if patience == inf else max(1, round(patience * 1000))
        options = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", _LARGEST),
            ("grpc.max_send_message_length", -1),
            # A replica that is down is asked again by whoever calls, and not when the library thinks fit.
            ("grpc.min_reconnect_backoff_ms", milliseconds),
            ("grpc.initial_reconnect_backoff_ms", _BACKOFF),
            ("grpc.max_reconnect_backoff_ms", _BACKOFF),
        ]
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        target = f"{host}:{origin.port}"
        if origin.scheme != "grpcs":
            return self._grpc.aio.insecure_channel(target, options=options)
        return self._grpc.aio.secure_channel(target, _credentials(self._grpc, self._settings), options=options)

    async def _generate(self, origin: Origin, call: "_Call", model: str, request: httpx.Request) -> httpx.Response:
        known = self._inputs.get((origin, model))
        if known is None:
            known = kserve.read_inputs(await call.ask("ModelMetadata", kserve.named(model)))
            self._inputs[origin, model] = known
        try:
            message = kserve.infer_request(model, orjson.loads(request.read()), known)
        except ValueError as mistake:
            return _error(500, str(mistake))
        first = await call.infer(message)
        if first is not None and first.error:
            self._inputs.pop((origin, model), None)  # it may have been loaded anew, with others
        status = 400 if first is not None and first.error else 200
        idle = Deadlines(request.extensions).idle
        return httpx.Response(status, headers=_EVENTS, stream=_Events(self._grpc, call, first, idle))

    def _failed(self, channel: Any, failure: Any) -> httpx.Response:
        """A status of the server's, or a connection that broke: the library has one word for both."""
        codes = self._grpc.StatusCode
        if failure.code() is codes.UNAVAILABLE and channel.get_state() is not self._grpc.ChannelConnectivity.READY:
            raise httpx.ReadError("the connection broke") from None
        if failure.code() is codes.CANCELLED:
            raise httpx.ReadError("the upstream cancelled the call") from None
        statuses = {codes.NOT_FOUND: 404, codes.UNAVAILABLE: 503, codes.INTERNAL: 500, codes.UNIMPLEMENTED: 501}
        refusals = {codes.UNAUTHENTICATED: 401, codes.PERMISSION_DENIED: 403, codes.RESOURCE_EXHAUSTED: 429}
        return _error({**statuses, **refusals}.get(failure.code(), 400), failure.details() or "")


class _Call:
    """One conversation with the server: questions, and then perhaps an inference."""

    __slots__ = ("_channel", "_grpc", "_metadata", "_stream")

    def __init__(self, grpc: Any, channel: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self._grpc = grpc
        self._channel = channel
        self._metadata = metadata
        self._stream: Any = None

    async def ask(self, question: str, message: bytes) -> bytes:
        """One message, and one in answer."""
        answer: bytes = await self._channel.unary_unary(_SERVICE + question)(message, metadata=self._metadata)
        return answer

    async def infer(self, message: bytes) -> kserve.Response | None:
        """Ask for an inference; the first response to it, or None if there is none."""
        self._stream = self._channel.stream_stream(_SERVICE + "ModelStreamInfer")(metadata=self._metadata)
        try:
            await self._stream.write(message)
            await self._stream.done_writing()
        except asyncio.InvalidStateError:
            pass  # it is over already, and reading says why
        return await self.read()

    async def read(self) -> kserve.Response | None:
        """The next response; None at the end."""
        message = await self._stream.read()
        return None if message is self._grpc.aio.EOF else kserve.read_response(message)

    def cancel(self) -> None:
        """Whatever is still going on there is to stop."""
        if self._stream is not None:
            self._stream.cancel()


class _Events(httpx.AsyncByteStream):
    """The responses to one inference as the events of a stream."""

    def __init__(self, grpc: Any, call: _Call, first: kserve.Response | None, idle: float) -> None:
        self._grpc = grpc
        self._call = call
        self._first = first
        self._idle = idle

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """One event. Raises httpx.TransportError."""
        response, self._first = self._first, None
        if response is None and (response := await self._next()) is None:
            raise StopAsyncIteration
        members = {"error": response.error} if response.error else response.members
        return b"data: " + orjson.dumps(members) + b"\n\n"

    async def _next(self) -> kserve.Response | None:
        try:
            async with _within(self._idle, IdleTimeout):
                return await self._call.read()
        except self._grpc.aio.AioRpcError:
            raise httpx.ReadError("the connection broke within the answer") from None
        except ValueError:
            raise httpx.RemoteProtocolError("the upstream sent what is no message") from None

    async def aclose(self) -> None:
        """Cancels what is not at its end; never suspends."""
        self._call.cancel()


@contextlib.asynccontextmanager
async def _within(seconds: float, late: type[httpx.TimeoutException]) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(None if seconds == inf else seconds):
            yield
    except TimeoutError:
        raise late("the upstream was silent for too long") from None


def _status(answer: bytes) -> httpx.Response:
    """As the HTTP side says it: 400 is not ready."""
    ready = kserve.read_flag(answer)
    return httpx.Response(200 if ready else 400, headers=_JSON, stream=httpx.ByteStream(b""))


def _error(status: int, words: str) -> httpx.Response:
    return httpx.Response(status, headers=_JSON, stream=httpx.ByteStream(orjson.dumps({"error": words})))


def _credentials(grpc: Any, settings: TransportSettings) -> Any:
    def content(path: str | None) -> bytes | None:
        return None if path is None else Path(path).read_bytes()

    return grpc.ssl_channel_credentials(
        root_certificates=content(settings.ca_file or certifi.where()),
        private_key=content(settings.client_key or settings.client_cert),
        certificate_chain=content(settings.client_cert),
    )
