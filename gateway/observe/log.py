"""Log lines: what they look like, and how they leave without ever making a caller wait.

A pipe that nobody reads fills up, and a write to it blocks: so lines are handed to a thread of their own, through a
buffer with an end. What does not fit is dropped and counted. Must not know calls.
"""

import logging
import os
import threading
from typing import Any, Literal

import orjson
import structlog
from structlog.typing import EventDict, FilteringBoundLogger

Format = Literal["json", "console"]
Level = Literal["debug", "info", "warning", "error"]

_QUIET = ("httpx", "httpcore", "uvicorn.access")  # each would say less than the request's own line, or more than it may


class LineWriter:
    """Takes lines from any thread at once, and writes them to a file descriptor in batches.

    `capacity`: bytes that may wait; beyond it lines are dropped, and counted in `dropped`.
    """

    def __init__(self, descriptor: int, *, capacity: int = 8 << 20) -> None:
        self._descriptor = descriptor
        self._capacity = capacity
        self._lines: list[bytes] = []
        self._waiting = 0
        self._wake = threading.Event()
        self._closing = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def msg(self, line: bytes) -> None:
        """Write `line`, soon. Never waits."""
        if self._waiting > self._capacity:
            self.dropped += 1
            return
        self._waiting += len(line) + 1
        self._lines.append(line)
        if not self._wake.is_set():
            self._wake.set()

    # structlog calls the method that has the level's name
    log = debug = info = warning = warn = error = critical = exception = msg

    def close(self, patience: float = 2.0) -> None:
        """Write what waits, for at most `patience` seconds."""
        self._closing = True
        self._wake.set()
        self._thread.join(patience)

    def _run(self) -> None:
        pause = threading.Event()
        while not self._closing:
            self._wake.wait()
            if not self._closing:
                pause.wait(0.02)  # one write for all the lines of a moment
            self._wake.clear()
            self._flush()
        self._flush()

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        if not lines:
            return
        data = b"\n".join(lines) + b"\n"
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            self.dropped += len(lines)  # the reader has gone; the calls go on
        finally:
            self._waiting -= sum(len(line) + 1 for line in lines)


def configure(writer: LineWriter, *, format_: Format, level: Level) -> FilteringBoundLogger:
    """Send structlog's and the standard library's lines through `writer`; returns the logger of the request lines."""
    number = logging.getLevelNamesMapping()[level.upper()]
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *([_exception, _render_json] if format_ == "json" else [_console(), _encode]),
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )
    _fold_in_standard_library(number)
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger.bind()


def _render_json(_logger: object, _method: str, event: EventDict) -> bytes:
    head = {"timestamp": event.pop("timestamp"), "level": event.pop("level"), "event": event.pop("event")}
    return orjson.dumps(head | event, default=lambda value: type(value).__name__)


def _encode(_logger: object, _method: str, line: str) -> bytes:
    return line.encode("utf-8", "replace")


def _console() -> structlog.dev.ConsoleRenderer:
    return structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)


def _exception(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Where an exception came from, without its message or any local value: both may hold what callers sent."""
    failure = event.pop("exc_info", None)
    if isinstance(failure, BaseException):
        frames: list[str] = []
        trace = failure.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            frames.append(f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} {code.co_name}")
            trace = trace.tb_next
        event["trace"] = frames
    return event


class _Fold(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(record.levelno, record.getMessage(), logger=record.name)


def _fold_in_standard_library(level: int) -> None:
    root = logging.getLogger()
    root.handlers[:] = [_Fold()]
    root.setLevel(max(level, logging.WARNING))
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger(name).propagate = False
