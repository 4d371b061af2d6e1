"""What log lines look like: JSON for machines, or one short line for people. Never a prompt, an answer or a key.

An exception is told by its type and by where it came from, without its message or any local value: both may hold what
callers sent. The standard library's lines are folded in, and of them no more than the first line. Must not know calls.
"""

import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
import structlog
from structlog.typing import EventDict, FilteringBoundLogger

from gateway.observe.console import Console
from gateway.observe.writer import LineWriter

__all__ = ["LineWriter", "configure"]

Format = Literal["json", "console"]
Level = Literal["debug", "info", "warning", "error"]
Clock = Callable[[], datetime]

_NO_FIELDS: dict[str, Any] = {}
_QUIET = ("httpx", "httpcore", "uvicorn.access")  # each would say less than the request's own line, or more than it may


def _now() -> datetime:
    return datetime.now(UTC)


def configure(writer: LineWriter, *, format_: Format, level: Level, now: Clock = _now) -> FilteringBoundLogger:
    """Send structlog's and the standard library's lines through `writer`; returns the logger of the request lines."""
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[_Head(now), _without_message, _json if format_ == "json" else Console(color=writer.interactive)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )
    _fold_in_standard_library(number)
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger.bind()


class _Head:
    """Puts in front what every line has: when, how bad, what. `fields`, if there are any, become part of the line."""

    def __init__(self, now: Clock) -> None:
        self._now = now

    def __call__(self, _logger: object, method: str, event: EventDict) -> EventDict:
        name, fields = event.pop("event"), event.pop("fields", _NO_FIELDS)
        return {"timestamp": self._now(), "level": method, "event": name, **fields, **event}


def _without_message(_logger: object, _method: str, event: EventDict) -> EventDict:
    if "exc_info" not in event:
        return event
    failure = event.pop("exc_info")
    if isinstance(failure, tuple):
        failure = failure[1]
    elif failure is True:
        failure = sys.exception()
    if isinstance(failure, BaseException):
        event.setdefault("error", type(failure).__name__)
        event["trace"] = _trace(failure)
    return event


def _trace(failure: BaseException) -> list[str]:
    frames: list[str] = []
    trace = failure.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return frames


def _json(_logger: object, _method: str, event: EventDict) -> bytes:
    try:
        return orjson.dumps(event, default=_name_of_type, option=orjson.OPT_UTC_Z)
    except TypeError:  # a lone surrogate, a number beyond 64 bits: tell it in another way rather than not at all
        told = {str(key): ascii(value) for key, value in event.items()} | {"timestamp": event["timestamp"]}
        return orjson.dumps(told, option=orjson.OPT_UTC_Z)


def _name_of_type(value: object) -> str:
    return type(value).__name__


class Fold(logging.Handler):
    """A record of the standard library, as a line of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit the message
            text = str(record.msg)
        level = max(number for number in (10, 20, 30, 40, 50) if number <= max(record.levelno, 10))
        extra: dict[str, Any] = {} if record.exc_info is None else {"exc_info": record.exc_info}
        # asyncio goes on to show the task, and with it the message of its exception
        structlog.get_logger().log(level, text.partition("\n")[0], logger=record.name, **extra)


def _fold_in_standard_library(level: int) -> None:
    root = logging.getLogger()
    root.handlers[:] = [Fold()]
    root.setLevel(max(level, logging.WARNING))
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger(name).propagate = False
