"""What a log line says, to machines and to people, and what it never says."""

import asyncio
import logging
import os
import pty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from gateway.observe.log import Format, LineWriter, configure
from gateway.observe.metrics import Metrics
from gateway.observe.record import Recorder
from tests.observe.samples import Log, exchange, logging_to, refused, remember

CANARY = "canary-7c1d"
FORMATS: list[Format] = ["json", "console"]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with logging_to(tmp_path / "log") as made:
        yield made


def fails(secret: str) -> None:
    local = secret * 2
    raise ValueError(local)


def failure(secret: str = CANARY) -> ValueError:
    with pytest.raises(ValueError, match=secret) as caught:
        fails(secret)
    return caught.value


# JSON.


def test_a_line_says_when_how_bad_and_what_first(log: Log) -> None:
    log.logger.warning("draining", open=3)
    assert log.read() == '{"timestamp":"2026-11-22T12:00:00.123456Z","level":"warning","event":"draining","open":3}\n'


def test_a_loggers_line_below_the_level_is_not_written(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log", level="warning") as log:
        log.logger.info("quiet")
        structlog.get_logger("other").warning("loud")
        assert [line["event"] for line in log.lines()] == ["loud"]


def test_a_value_that_json_does_not_know_does_not_lose_the_line(log: Log) -> None:
    log.logger.info("odd", value={1, 2}, data=b"x")
    log.logger.info("odder", value="\udc80", number=2**70)
    odd, odder = log.lines()
    assert (odd["value"], odd["data"]) == ("set", "bytes")
    assert odder["number"] == str(2**70)
    assert "odder" in odder["event"]


@pytest.mark.parametrize("format_", FORMATS)
def test_an_exception_is_told_by_type_and_place_without_message_and_locals(tmp_path: Path, format_: Format) -> None:
    with logging_to(tmp_path / "log", format_) as log:
        error = failure()
        log.logger.error("given", exc_info=error)
        log.logger.error("triple", exc_info=(type(error), error, error.__traceback__))
        try:
            fails(CANARY)
        except ValueError:
            log.logger.exception("current")
            log.logger.error("flag", exc_info=True)  # noqa: G201
        log.logger.error("none", exc_info=True)  # noqa: LOG014
        logging.getLogger("library").error("folded", exc_info=error)
        text = log.read()
    assert CANARY not in text
    assert text.count("ValueError") == 5
    assert text.count(" fails") == 5


# The standard library.


def test_the_standard_librarys_warnings_are_folded_in_and_less_is_not(log: Log) -> None:
    logging.getLogger("library").warning("%s is %d", "answer", 42)
    logging.getLogger("library").info("chatter")
    logging.getLogger("library").log(35, "between two levels")
    logging.getLogger("library").critical("dire")
    logging.getLogger("httpx").info("GET https://example.com/?key=%s", CANARY)
    told = [(line["level"], line["event"], line["logger"]) for line in log.lines()]
    assert told == [
        ("warning", "answer is 42", "library"),
        ("warning", "between two levels", "library"),
        ("critical", "dire", "library"),
    ]


def test_a_record_whose_arguments_do_not_fit_is_told_as_it_stands(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log") as log:
        logging.getLogger("library").warning("%d days", "x")
        assert [line["event"] for line in log.lines()] == ["%d days"]


async def test_a_task_that_nobody_asked_is_told_without_its_message(log: Log) -> None:
    async def doomed() -> None:
        fails(CANARY)

    task = asyncio.get_running_loop().create_task(doomed())
    await asyncio.wait([task])
    asyncio.get_running_loop().default_exception_handler(
        {"message": "Task exception was never retrieved", "exception": task.exception(), "future": task}
    )
    (line,) = log.lines()
    assert (line["event"], line["error"], line["logger"]) == (
        "Task exception was never retrieved",
        "ValueError",
        "asyncio",
    )
    assert CANARY not in str(line)


# The request's line.

FIELDS: dict[str, Any] = {
    "timestamp": "2026-11-22T12:00:00.123456Z",
    "level": "info",
    "event": "request",
    "request_id": "0123456789abcdef",
    "key": "search",
    "kind": "chat",
    "model": "chat",
    "upstream": "vllm",
    "upstream_model": "Qwen/Qwen3-32B",
    "replica": "vllm-0:8000",
    "attempts": 1,
    "retries": [],
    "gave_up": "",
    "stream": True,
    "status": 200,
    "outcome": "served",
    "prompt_chars": 400,
    "input_tokens": 100,
    "output_tokens": 50,
    "usage_estimated": False,
    "ttft_ms": 300.0,
    "duration_ms": 1300.0,
    "upstream_ms": 200.0,
    "overhead_ms": 2.0,
    "end_reason": "done",
}


def recorder(log: Log) -> Recorder:
    return Recorder(Metrics(lambda: 0, list, lambda: 0), log.logger)


def test_a_requests_line_has_just_these_fields(log: Log) -> None:
    recorder(log).finish(exchange())
    assert log.lines() == [FIELDS]


def test_what_never_came_is_null(log: Log) -> None:
    recorder(log).finish(refused())
    (line,) = log.lines()
    assert set(line) == set(FIELDS)
    assert {name for name, value in line.items() if value is None} == {
        "input_tokens",
        "output_tokens",
        "ttft_ms",
        "overhead_ms",
    }
    assert (line["model"], line["upstream"], line["key"], line["attempts"]) == ("unknown", "", "", 0)
    assert (line["replica"], line["retries"], line["gave_up"]) == ("", [], "")


def test_a_call_that_was_tried_again_says_how_each_attempt_before_the_last_failed_and_why_there_were_no_more(
    log: Log,
) -> None:
    retries = (("vllm", "upstream_reset"), ("openai", "rate_limit_exceeded"))
    recorder(log).finish(exchange(attempts=3, retries=retries, gave_up="budget"))
    (line,) = log.lines()
    assert line["retries"] == ["upstream_reset", "rate_limit_exceeded"]
    assert (line["attempts"], line["gave_up"]) == (3, "budget")


def test_a_name_that_the_caller_made_up_is_cut(log: Log) -> None:
    recorder(log).finish(exchange(upstream_model="x" * 100_000))
    assert log.lines()[0]["upstream_model"] == "x" * 200


@pytest.mark.parametrize(
    ("changes", "estimated"),
    [
        ({}, (100, 52, True)),
        ({"status": 499, "outcome": "abandoned"}, (100, 52, True)),
        ({"status": 502, "outcome": "failed"}, (None, None, False)),
        ({"attempts": 0}, (None, None, False)),
    ],
)
def test_usage_that_nobody_reported_is_guessed_where_tokens_were_spent_and_marked(
    log: Log, changes: dict[str, Any], estimated: tuple[int | None, int | None, bool]
) -> None:
    recorder(log).finish(exchange(usage=None, **changes))
    (line,) = log.lines()
    assert (line["input_tokens"], line["output_tokens"], line["usage_estimated"]) == estimated


# For people.


def shown(tmp_path: Path, *records: Any) -> list[str]:
    with logging_to(tmp_path / "log", "console") as log:
        for record in records:
            recorder(log).finish(record)
        return log.read().splitlines()


def test_a_request_is_one_short_line_for_people(tmp_path: Path) -> None:
    assert shown(
        tmp_path,
        exchange(),
        exchange(usage=None, attempts=3, stream=False, content_at=None),
        exchange(end_reason="upstream_stream_timeout", outcome="timed_out", content_at=None, key_name=""),
        exchange(status=502, end_reason="upstream_reset", usage=None, content_at=None),
        refused(),
    ) == [
        "12:00:00.123 info    200 chat chat -> vllm 1300 ms (first token 300 ms) 100+50 tokens [search] 0123456789abcdef",
        "12:00:00.123 info    200 chat chat -> vllm x3 1300 ms ~100+52 tokens [search] 0123456789abcdef",
        "12:00:00.123 warning 200 chat chat -> vllm 1300 ms 100+50 tokens upstream_stream_timeout [-] 0123456789abcdef",
        "12:00:00.123 error   502 chat chat -> vllm 1300 ms upstream_reset [search] 0123456789abcdef",
        "12:00:00.123 warning 404 chat unknown 1 ms model_not_found [-] 0123456789abcdef",
    ]


def test_other_lines_are_short_too_and_an_exceptions_way_is_below_them(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log", "console") as log:
        log.logger.info("listening", host="127.0.0.1", port=8080)
        log.logger.error("unforeseen", exc_info=failure())
        first, second, *way = log.read().splitlines()
    assert first == "12:00:00.123 info    listening host=127.0.0.1 port=8080"
    assert second == "12:00:00.123 error   unforeseen error=ValueError"
    assert all(line.startswith("    test_log.py:") for line in way)
    assert way[-1].endswith(" fails")


def test_no_value_breaks_a_line_or_moves_the_cursor(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log", "console") as log:
        log.logger.info("told", value="a\nb\x1b[31m\u2028\u009b", other="\udc80")
        recorder(log).finish(exchange(model="a\nb\x1b[2J"))
        text = log.read()
    assert text.count("\n") == 2
    assert "\x1b" not in text
    assert "\u009b" not in text


@pytest.mark.parametrize(("ends", "colored"), [(pty.openpty, True), (os.pipe, False)])
def test_lines_are_coloured_where_a_person_watches_and_nowhere_else(
    ends: Callable[[], tuple[int, int]], colored: bool
) -> None:
    reading, writing = ends()
    writer = LineWriter(writing)
    restore = remember()
    configure(writer, format_="console", level="info").error("told")
    restore()
    writer.close()
    assert ("\x1b[" in os.read(reading, 1000).decode()) is colored
    os.close(reading)
    os.close(writing)
