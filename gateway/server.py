"""Serves a Gateway until told to stop, and leaves in order.

The drain: not ready at once; go on accepting for `linger_seconds`, while load balancers find out; stop accepting; let
what is open end, up to `drain_seconds`; tell what is left; close; write the last lines. A second signal skips the waits.
"""

import asyncio
import contextlib
import errno
import gc
import signal
import socket
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import structlog
import uvicorn
import uvloop
from starlette.types import ASGIApp
from structlog.typing import FilteringBoundLogger

from gateway import __version__, errors
from gateway.api.protocol import protocol_factory
from gateway.app import Gateway, create_gateway
from gateway.config import Settings
from gateway.observe.log import LineWriter, configure
from gateway.observe.otlp import SpanQueue
from gateway.tasks import spawn

_BACKLOG = 2048
_LAST_WORDS = 5.0  # seconds to hand the callers their last event, once the drain is over
_LAST_SPANS = (1.0, 5.0)  # at least and at most, for a receiver of traces that may be down


class Server(uvicorn.Server):
    """uvicorn's, without its own handling of signals: the drain is ours."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self.accepting.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def serve(settings: Settings, *, transport: httpx.AsyncBaseTransport | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. Raises OSError where a port can't be had."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, "stdout, where the log goes, is closed")
    sockets = [
        listen(settings.server.host, settings.server.port),
        listen(settings.server.admin_address, settings.server.admin_port),
    ]
    writer = LineWriter(sys.stdout.fileno())
    logger = configure(writer, format_=settings.log.format, level=settings.log.level)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(settings, sockets, logger, writer, transport))
    finally:
        writer.close()
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError that names the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)  # with SO_REUSEADDR it is only here that a second one is refused
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{host}:{port}: {error.strerror}") from None
    return listener


async def _run(
    settings: Settings,
    sockets: list[socket.socket],
    logger: FilteringBoundLogger,
    writer: LineWriter,
    transport: httpx.AsyncBaseTransport | None,
) -> None:
    gateway = create_gateway(settings, logger=logger, writer=writer, transport=transport)
    signals, until = _Signals(), 0.0

    def refused(error: errors.GatewayError, request_id: str) -> None:
        gateway.metrics.refused(error.status)
        logger.warning("refused", status=error.status, code=error.code, request_id=request_id)

    protocol = protocol_factory(gateway.limits, on_refused=refused)
    servers = [Server(_uvicorn(app, protocol)) for app in (gateway.api, gateway.admin)]
    running = [spawn(server.serve([bound]), name="serve") for server, bound in zip(servers, sockets, strict=True)]
    await _accepting(servers, running)
    api, admin = (bound.getsockname() for bound in sockets)
    logger.info("listening", version=__version__, host=api[0], port=api[1], admin_host=admin[0], admin_port=admin[1])
    watching = [spawn(watcher.run(), name="watcher") for watcher in gateway.watchers]
    gc.collect()
    gc.freeze()
    try:
        await signals.stop.wait()
        until = _now() + settings.server.linger_seconds + settings.server.drain_seconds
        await _drain(gateway, servers, running, signals, settings)
    finally:
        for watcher in watching:
            watcher.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        await gateway.fleet.aclose()
        if gateway.spans is not None:
            await _send_out(gateway.spans, signals, until - _now())
        logger.info("stopped")


async def _accepting(servers: list[Server], running: list[asyncio.Task[object]]) -> None:
    """Return when all of them listen. Raises what ended one of them before."""
    ready = asyncio.gather(*(server.accepting.wait() for server in servers))
    either: list[asyncio.Future[Any]] = [ready, *running]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    for task in running:
        if task.done():
            ready.cancel()
            task.result()


def _uvicorn(app: ASGIApp, protocol: type[asyncio.Protocol]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
    )


class _Signals:
    """The first SIGTERM or SIGINT stops, the second hurries."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received)

    def _received(self) -> None:
        (self.hurry if self.stop.is_set() else self.stop).set()


async def _drain(
    gateway: Gateway,
    servers: list[Server],
    running: list[asyncio.Task[object]],
    signals: _Signals,
    settings: Settings,
) -> None:
    logger = structlog.get_logger()
    gateway.health.ready = False
    logger.info("draining", open=len(gateway.api.open))
    api, admin = servers
    await _hurried(signals, settings.server.linger_seconds)
    api.should_exit = True
    waiting = asyncio.ensure_future(signals.hurry.wait())
    await asyncio.wait(
        [running[0], waiting], timeout=settings.server.drain_seconds, return_when=asyncio.FIRST_COMPLETED
    )
    waiting.cancel()
    if gateway.api.open:
        logger.warning("interrupting", open=len(gateway.api.open))
        for exchange in list(gateway.api.open):
            exchange.interrupt(errors.ShuttingDown("The gateway is shutting down."))
        await asyncio.wait([running[0]], timeout=_LAST_WORDS)
    api.force_exit = admin.should_exit = admin.force_exit = True
    await asyncio.wait(running)


async def _send_out(spans: SpanQueue, signals: _Signals, seconds: float) -> None:
    """The last spans, in what is left of the drain."""
    sent, loop = asyncio.Event(), asyncio.get_running_loop()
    spans.close(partial(loop.call_soon_threadsafe, sent.set))
    either = [asyncio.ensure_future(event.wait()) for event in (sent, signals.hurry)]
    least, most = _LAST_SPANS
    await asyncio.wait(either, timeout=max(least, min(most, seconds)), return_when=asyncio.FIRST_COMPLETED)
    for waiting in either:
        waiting.cancel()
    if not sent.is_set():
        spans.abandon()


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _hurried(signals: _Signals, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(signals.hurry.wait(), seconds)
