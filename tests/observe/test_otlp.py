"""How spans leave: whoever has them never waits, and what nobody will see is counted."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from structlog.testing import capture_logs

from gateway.observe.otlp import MissingExtra, SpanQueue, TracingSettings, open_queue
from gateway.observe.traces import Span
from gateway.wire.tracecontext import Context
from tests.support.upstream import unused_port

SPAN = Span("a span", Context(1, 2, 1), None, True, 0, 1, {}, False)


class Scripted:
    """A way out that does as it is told: `works`, and waits while `open` is not set."""

    reason = "as told"

    def __init__(self) -> None:
        self.works = True
        self.batches: list[int] = []
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.closed = threading.Event()

    def send(self, spans: Sequence[Span]) -> bool:
        self.entered.set()
        self.open.wait(10)
        self.batches.append(len(spans))
        return self.works

    def close(self) -> None:
        self.closed.set()
        self.open.set()


@contextmanager
def queue(export: Scripted, capacity: int = 100) -> Iterator[SpanQueue]:
    made = SpanQueue(export, capacity=capacity, pause=0.0)
    try:
        yield made
    finally:
        made.close()
        made.abandon()
        assert made.join(10)


def ended(spans: SpanQueue) -> None:
    spans.close()
    assert spans.join(10)


def test_what_waits_is_sent_at_the_end_and_whoever_asked_is_told() -> None:
    export, told = Scripted(), threading.Event()
    spans = SpanQueue(export, capacity=2000, pause=3600)
    for _ in range(600):
        spans.put([SPAN, SPAN])
    spans.close(told.set)
    assert told.wait(10)
    assert sum(export.batches) == 1200
    assert max(export.batches) == 512
    assert export.closed.is_set()
    assert spans.lost == 0


def test_spans_are_sent_while_it_goes_on() -> None:
    export = Scripted()
    with queue(export) as spans:
        spans.put([SPAN])
        assert export.entered.wait(10)


def test_a_receiver_that_hangs_fills_the_queue_and_the_rest_is_dropped_whole_calls_at_a_time() -> None:
    export = Scripted()
    export.open.clear()
    with queue(export, capacity=5) as spans:
        spans.put([SPAN])
        assert export.entered.wait(10)
        for _ in range(3):
            spans.put([SPAN, SPAN])
        assert spans.lost == 2
        export.open.set()
        ended(spans)
        assert sum(export.batches) == 5


def test_what_comes_after_the_end_is_counted_as_lost() -> None:
    spans = SpanQueue(Scripted(), capacity=5)
    ended(spans)
    spans.put([SPAN])
    assert spans.lost == 1


def test_a_receiver_that_fails_is_told_of_once_and_once_more_when_it_works() -> None:
    export = Scripted()
    with capture_logs() as lines:
        spans = SpanQueue(export, capacity=5, pause=0.0)
        for works in (False, False, True):
            export.works = works
            export.entered.clear()
            spans.put([SPAN])
            assert export.entered.wait(10)
            while len(export.batches) < len(lines):
                pass
        ended(spans)
    assert lines == [
        {"event": "traces_lost", "log_level": "warning", "reason": "as told"},
        {"event": "traces_sent", "log_level": "info", "lost": 2},
    ]
    assert spans.lost == 2


def test_what_is_abandoned_ends_even_while_the_receiver_hangs() -> None:
    export = Scripted()
    export.open.clear()
    export.works = False
    spans = SpanQueue(export, capacity=5, pause=0.0)
    spans.put([SPAN])
    assert export.entered.wait(10)
    spans.put([SPAN])
    spans.close()
    assert not spans.join(0)
    with capture_logs() as lines:
        spans.abandon()
        assert spans.join(10)
    assert export.batches == [1]
    assert [line["event"] for line in lines] == ["traces_lost"]


def given(protocol: str) -> TracingSettings:
    return TracingSettings(f"http://127.0.0.1:{unused_port()}", protocol, {}, "gateway", {}, 10, 0.1)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_receiver_that_cant_be_reached_is_told_of_in_one_line(protocol: str) -> None:
    with capture_logs() as lines:
        spans = open_queue(given(protocol))
        spans.put([SPAN])
        ended(spans)
    (line,) = lines
    assert (line["event"], spans.lost) == ("traces_lost", 1)
    assert line["reason"]
    assert "\n" not in line["reason"]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_without_the_extra_it_says_what_to_install(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, f"opentelemetry.exporter.otlp.proto.{protocol}.trace_exporter", None)
    with pytest.raises(MissingExtra, match=r"gateway\[otel\]"):
        open_queue(given(protocol))
