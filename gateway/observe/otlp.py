"""Sends spans to an OTLP receiver, from a thread of its own: the only file that knows OpenTelemetry's SDK, an extra.

Whoever has spans never waits: they go into a buffer with an end, what does not fit is dropped, and both that and what could
not be sent is counted. A receiver that is down is told of once, until it takes spans again. Must not know calls.
"""

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import structlog

from gateway import __version__
from gateway.observe import semconv
from gateway.observe.traces import Span
from gateway.wire.tracecontext import Context

_BATCH = 512  # spans in one message
_PAUSE = 1.0  # seconds for which spans wait for others


class MissingExtra(Exception):
    """OpenTelemetry is not installed. Its text is one line, for whoever wrote the config."""


class TracingSettings(NamedTuple):
    """Where spans go, and as whose. The config file documents them one by one."""

    endpoint: str
    protocol: str
    headers: Mapping[str, str]
    service: str
    resource: Mapping[str, str]
    queue: int
    timeout: float


class Export(Protocol):
    """The way out. It may wait, and says whether the spans have arrived."""

    def send(self, spans: Sequence[Span]) -> bool:
        """Send; never raises what is not a fault of ours."""

    @property
    def reason(self) -> str:
        """Why the last ones have not arrived, in one line; empty where that is not known, or not yet."""

    def close(self) -> None:
        """Give up what is being sent. Called from another thread than `send`."""


class SpanQueue:
    """Takes spans at once, and sends them in batches. `capacity`: spans that may wait.

    `lost`: spans that were dropped, or could not be sent.
    """

    def __init__(self, export: Export, *, capacity: int, pause: float = _PAUSE) -> None:
        self._export = export
        self._capacity = capacity
        self._pause = pause
        self._waiting: deque[Span] = deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._failing = False
        self._dropped = 0
        self._failed = 0
        self._then: Callable[[], object] | None = None
        self._log = structlog.get_logger("gateway.traces")
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Spans that nobody will see."""
        return self._dropped + self._failed

    def put(self, spans: Sequence[Span]) -> None:
        """Send them, soon: all of them, or none where there is no room. Never waits."""
        if self._closing.is_set() or len(self._waiting) + len(spans) > self._capacity:
            self._dropped += len(spans)
            return
        self._waiting.extend(spans)
        if not self._wake.is_set():
            self._wake.set()

    def close(self, then: Callable[[], object] | None = None) -> None:
        """Take no more, send what waits, and call `then` from the thread that has."""
        self._then = then
        self._closing.set()
        self._wake.set()

    def abandon(self) -> None:
        """Give up what has not been sent by now, and say so."""
        if not self._failing:
            self._failing = True
            self._log.warning("traces_lost", reason=self._export.reason or "the last of them were not taken in time")
        self._waiting.clear()
        self._export.close()

    def join(self, patience: float) -> bool:
        """Wait until all is sent, for at most `patience` seconds; whether it is."""
        self._thread.join(patience)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._closing.wait(self._pause)  # one message for all the spans of a moment
            self._wake.clear()
            self._flush()
        self._flush()
        self._export.close()
        if self._then is not None:
            with contextlib.suppress(RuntimeError):  # who wanted to know is gone
                self._then()

    def _flush(self) -> None:
        while self._waiting:
            batch: list[Span] = []
            with contextlib.suppress(IndexError):  # abandoned
                while len(batch) < _BATCH:
                    batch.append(self._waiting.popleft())
            self._tell(len(batch), sent=self._export.send(batch))

    def _tell(self, spans: int, *, sent: bool) -> None:
        if not sent:
            self._failed += spans
        if sent and self._failing:
            self._log.info("traces_sent", lost=self.lost)
        elif not sent and not self._failing:
            self._log.warning("traces_lost", reason=self._export.reason or "none was given")
        self._failing = not sent


def open_queue(settings: TracingSettings) -> SpanQueue:
    """A queue that sends to the receiver of the settings. Raises MissingExtra."""
    return SpanQueue(_Otlp(settings), capacity=settings.queue)


class _Otlp:
    """The SDK's exporter. What it would log is kept, as the reason: it has a line for every try."""

    def __init__(self, settings: TracingSettings) -> None:
        try:
            from opentelemetry import trace  # noqa: PLC0415  # an extra, likewise below
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import ReadableSpan  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import SpanExportResult  # noqa: PLC0415
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415

            self._exporter = _exporter(settings)
        except ImportError:
            raise MissingExtra("traces need OpenTelemetry's SDK: install gateway[otel]") from None
        self._api: Any = trace
        self._span: Any = ReadableSpan
        self._sent = SpanExportResult.SUCCESS
        self._scope = InstrumentationScope(semconv.SCOPE, __version__)
        named = {semconv.SERVICE_NAME: settings.service, semconv.SERVICE_VERSION: __version__}
        self._resource = Resource({**named, **settings.resource})
        self._said = _Said()
        logger = logging.getLogger("opentelemetry")
        logger.handlers[:] = [self._said]
        logger.propagate = False

    @property
    def reason(self) -> str:
        return self._said.first

    def send(self, spans: Sequence[Span]) -> bool:
        self._said.first = ""
        try:
            return bool(self._exporter.export([self._made(span) for span in spans]) == self._sent)
        except Exception as failure:  # noqa: BLE001 - a span less must not be a thread less
            self._said.first = type(failure).__name__
            return False

    def close(self) -> None:
        self._exporter.shutdown()

    def _made(self, span: Span) -> Any:
        code = self._api.StatusCode.ERROR if span.failed else self._api.StatusCode.UNSET
        kind = self._api.SpanKind.SERVER if span.server else self._api.SpanKind.CLIENT
        return self._span(
            span.name,
            self._context(span.context, remote=False),
            parent=None if span.parent is None else self._context(span.parent, remote=span.server),
            resource=self._resource,
            attributes=span.attributes,
            kind=kind,
            status=self._api.Status(code),
            start_time=span.start,
            end_time=span.end,
            instrumentation_scope=self._scope,
        )

    def _context(self, context: Context, *, remote: bool) -> Any:
        state = self._api.TraceState.from_header([context.state.decode("ascii")]) if context.state else None
        flags = self._api.TraceFlags(context.flags)
        return self._api.SpanContext(context.trace_id, context.span_id, remote, flags, state)


def _exporter(settings: TracingSettings) -> Any:
    headers = dict(settings.headers)
    if settings.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter as Grpc,
        )

        lower = {name.lower(): value for name, value in headers.items()}  # as gRPC wants them
        return Grpc(endpoint=settings.endpoint, headers=lower, timeout=settings.timeout)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http  # noqa: PLC0415

    url = settings.endpoint if urlsplit(settings.endpoint).path else f"{settings.endpoint}/v1/traces"
    return Http(endpoint=url, headers=headers, timeout=settings.timeout)


class _Said(logging.Handler):
    """Keeps the first line that the SDK logs of a failure, which says more than those of its further tries."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.first = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.first = self.first or record.getMessage().partition("\n")[0]
