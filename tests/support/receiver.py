"""A real OTLP receiver, over gRPC or HTTP, in threads of its own: what a gateway sends to it, as spans."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, NamedTuple

import grpc
import oteltest.sink
from oteltest.sink.handler import RequestHandler

from tests.support.secrets import watch

_LOG = logging.getLogger("oteltest")


class Got(NamedTuple):
    """A span as it came over the wire; ids are hexadecimal, times seconds since 1970."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    flags: int
    start: float
    end: float
    failed: bool
    attributes: dict[str, Any]
    resource: dict[str, Any]

    @property
    def server(self) -> bool:
        """Whether it is a request's, and not an attempt's."""
        return self.kind == 2


class Receiver(RequestHandler):  # type: ignore[misc]
    """What has been received. `url` is where, `protocol` how."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self.url = ""
        self.headers: list[Mapping[str, str]] = []
        self._spans: list[Got] = []
        self._raw: list[bytes] = []
        self._changed = threading.Condition()

    def handle_trace(self, request: Any, headers: Mapping[str, str]) -> None:
        with self._changed:
            self.headers.append({name.lower(): value for name, value in dict(headers).items()})
            self._raw.append(request.SerializeToString())
            watch.see("trace", self._raw[-1])
            for group in request.resource_spans:
                resource = _attributes(group.resource.attributes)
                for scoped in group.scope_spans:
                    self._spans += [_got(span, resource) for span in scoped.spans]
            self._changed.notify_all()

    handle_metrics = handle_logs = handle_trace

    @property
    def raw(self) -> bytes:
        """Every byte of every message."""
        with self._changed:
            return b"".join(self._raw)

    def spans(self, number: int = 0, *, patience: float = 10.0) -> list[Got]:
        """All spans so far, in the order of their beginnings, once there are so many of them."""
        deadline = time.monotonic() + patience
        with self._changed:
            while len(self._spans) < number:
                if not self._changed.wait(deadline - time.monotonic()):
                    raise LookupError(f"{len(self._spans)} spans")
            return sorted(self._spans, key=lambda span: (span.start, not span.server))


@contextlib.contextmanager
def receiving(protocol: str) -> Iterator[Receiver]:
    """A receiver on a free port of 127.0.0.1; the sinks themselves would listen on all addresses."""
    receiver = Receiver(protocol)
    with _grpc(receiver) if protocol == "grpc" else _http(receiver):
        yield receiver


@contextlib.contextmanager
def _grpc(receiver: Receiver) -> Iterator[None]:
    class Here:
        @staticmethod
        def server(pool: Any) -> Any:
            made = grpc.server(pool)
            bind = made.add_insecure_port
            made.add_insecure_port = lambda _: setattr(receiver, "url", f"http://127.0.0.1:{bind('127.0.0.1:0')}")
            return made

    with _instead("grpc", Here):
        sink = oteltest.sink.GrpcSink(receiver, _LOG, port=0)
    sink.start()
    try:
        yield
    finally:
        sink.svr.stop(grace=None).wait()


@contextlib.contextmanager
def _http(receiver: Receiver) -> Iterator[None]:
    ready = threading.Event()

    class Here(HTTPServer):
        def __init__(self, _: object, handler: type[BaseHTTPRequestHandler]) -> None:
            super().__init__(("127.0.0.1", 0), handler)
            receiver.url = f"http://127.0.0.1:{self.server_port}"
            ready.set()

        def serve_forever(self, poll_interval: float = 0.02) -> None:
            super().serve_forever(poll_interval)

    sink = oteltest.sink.HttpSink(receiver, _LOG, port=0)
    with _instead("HTTPServer", Here):
        sink.start()
        assert ready.wait(10)
    try:
        yield
    finally:
        sink.stop()


@contextlib.contextmanager
def _instead(name: str, thing: object) -> Iterator[None]:
    was = getattr(oteltest.sink, name)
    setattr(oteltest.sink, name, thing)
    try:
        yield
    finally:
        setattr(oteltest.sink, name, was)


def _got(span: Any, resource: dict[str, Any]) -> Got:
    return Got(
        span.name,
        span.kind,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.trace_state,
        span.flags,
        span.start_time_unix_nano / 1e9,
        span.end_time_unix_nano / 1e9,
        span.status.code == 2,
        _attributes(span.attributes),
        resource,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
