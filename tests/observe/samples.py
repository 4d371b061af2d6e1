"""Records of calls as the edge hands them over, metrics that count them, and where log lines can be read again."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import structlog
from structlog.typing import FilteringBoundLogger

from gateway.call import Exchange, Try, Usage, Wait, Waited
from gateway.observe.log import Fold, Format, Level, LineWriter, configure
from gateway.observe.metrics import Metrics
from gateway.observe.upstreams import EngineReading, ReplicaReading, UpstreamReading

VLLM = UpstreamReading(
    "vllm",
    [
        ReplicaReading("vllm-0:8000", "available", 2, EngineReading(3, 1, 0.5, 4), 0.25),
        ReplicaReading("vllm-1:8000", "ejected", 0),
    ],
    queued=3,
    budget=12.0,
    panics=False,
    key_refused=False,
)
OPENAI = VLLM._replace(name="openai", replicas=[ReplicaReading("api.openai.com", "available", 0)])
FAILED = Try("vllm", "vllm-1:8000", "failed")
SERVED = Try("vllm", "vllm-0:8000", "served")
NOON = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)


@dataclass
class Log:
    """A configured log, and what was written to it."""

    logger: FilteringBoundLogger
    read: Callable[[], str]

    def lines(self) -> list[dict[str, Any]]:
        """What was written, as JSON. Ends the log."""
        return [json.loads(line) for line in self.read().splitlines()]


def remember() -> Callable[[], None]:
    """What puts back structlog and the standard library as they are now; pytest's own handlers come and go."""
    root = logging.getLogger()
    config, level = structlog.get_config(), root.level

    def restore() -> None:
        structlog.configure(**config)
        root.handlers[:] = [handler for handler in root.handlers if not isinstance(handler, Fold)]
        root.setLevel(level)

    return restore


@contextmanager
def logging_to(path: Path, format_: Format = "json", level: Level = "info") -> Iterator[Log]:
    """A log into a file, while it lasts; structlog and the standard library are left as they were."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    writer = LineWriter(descriptor)
    restore = remember()

    def read() -> str:
        writer.close()
        return path.read_text(encoding="utf-8")

    try:
        yield Log(configure(writer, format_=format_, level=level, now=lambda: NOON), read)
    finally:
        writer.close()
        os.close(descriptor)
        restore()


def exchange(**changes: Any) -> Exchange:
    """A stream that was served: received at 10, first token 0.3 s later, then 50 tokens in 0.98 s."""
    record = Exchange("0123456789abcdef", "chat", 10.0)
    told: dict[str, Any] = {
        "key_name": "search",
        "model": "chat",
        "upstream": "vllm",
        "upstream_model": "Qwen/Qwen3-32B",
        "replica": "vllm-0:8000",
        "attempts": 1,
        "tries": (SERVED,),
        "stream": True,
        "prompt_chars": 400,
        "phase": "streaming",
        "received_at": 10.0,
        "sent_at": 10.001,
        "committed_at": 10.201,
        "relayed_at": 10.202,
        "content_at": 10.3,
        "last_event_at": 11.28,
        "longest_gap": 0.125,
        "ended_at": 11.3,
        "upstream_seconds": 0.2,
        "usage": Usage(100, 50, 40, 20),
        "events": 52,
        "status": 200,
        "outcome": "served",
        "end_reason": "done",
    }
    for name, value in (told | changes).items():
        setattr(record, name, value)
    return record


def refused(**changes: Any) -> Exchange:
    """A call that never got as far as an upstream."""
    record = Exchange("0123456789abcdef", "chat", 10.0)
    told: dict[str, Any] = {"status": 404, "outcome": "rejected", "end_reason": "model_not_found", "ended_at": 10.001}
    for name, value in (told | changes).items():
        setattr(record, name, value)
    return record


def metrics(*upstreams: UpstreamReading) -> Metrics:
    """Of a gateway with these upstreams; only what is known of them counts."""
    return Metrics(lambda: 7, lambda: upstreams, lambda: 3)


def used() -> Metrics:
    """Metrics in which every family has a sample."""
    made = metrics(VLLM)
    made.finish(exchange())
    made.finish(exchange(attempts=2, tries=(FAILED, SERVED), retries=(("vllm", "upstream_reset"),)))
    made.finish(exchange(attempts=2, tries=(SERVED, FAILED), hedge="second"))
    made.finish(exchange(tries=(FAILED,), gave_up="budget", outcome="failed", end_reason="upstream_reset"))
    made.finish(refused(upstream="vllm", status=503, outcome="overloaded", end_reason="overloaded"))
    made.refused(431)
    made.finish(exchange(waits=tuple(Wait(what, "vllm", 0.5) for what in get_args(Waited))))
    made.loop_lag.observe((), 0.001)
    return made
