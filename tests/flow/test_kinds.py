"""Upstreams that do not speak OpenAI's protocol, or that can't do all of it, behind a whole gateway."""

import threading
from contextlib import AbstractAsyncContextManager
from typing import Any

import orjson
import pytest

from gateway.dialects.triton import Chunks
from tests.support.clock import virtual_time
from tests.support.stage import (
    DONE,
    END,
    JSON,
    ROLE,
    STREAM_HEAD,
    USAGE,
    Cast,
    answering,
    chat,
    delta,
    event,
    frame,
    refused,
    request,
    served,
    staged_many,
)
from tests.support.upstream import Action, Script, close, read, reply, send, stall

anyio_backend = virtual_time

PROMPT = {"model": "m", "prompt": "Say something."}
COMPLETIONS = "/v1/completions"
ONLY_TEXT = {"kind": "triton", "health": {"enabled": False}}  # without a template there is no chat
SAID: Script = [
    read(),
    send(STREAM_HEAD, frame(event({"text_output": "hello", "finish_reason": "stop"})), END),
]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_one_upstream_can_not_do_another_does(stream: bool) -> None:
    scripts = {"a": [SAID], "b": [answering(served(stream))]}
    async with staged_many(
        scripts, upstreams={"a": ONLY_TEXT}, retry={"attempts": 1, "budget": 0, "reserve": 0}
    ) as stage:
        response = await stage.ask(chat(stream=stream))

        assert (response.status, response.headers["x-gateway-upstream"]) == (200, "b")
        assert stage.seen == {"a": [0], "b": [1]}
        assert stage.state("a") == "available"
        line = await stage.records.request()
        assert (line["retries"], line["gave_up"]) == (["unsupported_endpoint"], "")


@pytest.mark.parametrize("stream", [False, True])
async def test_what_no_upstream_can_do_is_the_callers_and_nothing_was_given_up(stream: bool) -> None:
    async with staged_many({"a": [SAID], "b": [SAID]}, upstreams={"a": ONLY_TEXT, "b": ONLY_TEXT}) as stage:
        response = await stage.ask(chat(stream=stream))

        assert (response.status, response.error["code"]) == (400, "unsupported_endpoint")
        assert stage.seen == {"a": [0], "b": [0]}
        assert (await stage.records.request())["gave_up"] == ""


async def test_a_parameter_that_can_not_be_honoured_is_told_by_its_name() -> None:
    async with staged_many({"a": [SAID]}, upstreams={"a": ONLY_TEXT}) as stage:
        response = await stage.ask({**PROMPT, "logprobs": 3}, path=COMPLETIONS)

        assert (response.status, response.error["code"], response.error["param"]) == (
            400,
            "unsupported_parameter",
            "logprobs",
        )


@pytest.mark.parametrize("able", ["a", "b"])
async def test_an_upstream_that_failed_is_told_of_and_not_the_one_that_was_not_asked(able: str) -> None:
    unable = "b" if able == "a" else "a"
    scripts = {"a": [answering(refused("500 Oops"))], "b": [answering(refused("500 Oops"))]}
    async with staged_many(scripts, upstreams={unable: ONLY_TEXT}, retry={"attempts": 2}) as stage:
        response = await stage.ask(chat())

        assert (response.status, response.error["code"]) == (502, "upstream_error")
        assert (await stage.records.request())["gave_up"] != ""


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"text_output":"hello","finish_reason":"stop"}', 502, "upstream_bad_content_type"),
        (b'{"error":"Request for unknown model: \'m\' is not found"}', 502, "upstream_error"),
        (b'{"error":"Model m is not ready"}', 503, "upstream_unavailable"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_json_in_place_of_a_stream_that_must_be_translated_is_no_answer(
    stream: bool, body: bytes, status: int, code: str
) -> None:
    upstreams = {"a": ONLY_TEXT}
    script = answering(reply(body, headers=[JSON]))
    async with staged_many({"a": [script]}, upstreams=upstreams, retry={"attempts": 1}) as stage:
        response = await stage.ask({**PROMPT, "stream": stream}, path=COMPLETIONS)

        assert (response.status, response.error["code"]) == (status, code)


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_takes_long_to_count_is_counted_on_a_thread_of_its_own(
    stream: bool, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[bool] = []
    end = Chunks.end

    def watched(chunks: Chunks) -> Any:
        ended.append(threading.current_thread() is threading.main_thread())
        return end(chunks)

    monkeypatch.setattr(Chunks, "slow_to_end", slow)
    monkeypatch.setattr(Chunks, "end", watched)
    async with staged_many({"a": [SAID]}, upstreams={"a": ONLY_TEXT}) as stage:
        response = await stage.ask({**PROMPT, "stream": stream}, path=COMPLETIONS)

        assert response.status == 200
        assert b"hello" in response.body
        assert ended == [not slow]


# Gathered: a plain call where the upstream can only stream.

QWQ = {"m": {"targets": [{"upstream": "up", "model": "qwq-plus"}]}}
THOUGHT = event({"id": "c-1", "choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}}]})
OTHER = event({"id": "c-1", "choices": [{"index": 1, "delta": {"content": "hi"}, "finish_reason": "stop"}]})
LATE = event({"error": {"code": "Throttling", "message": "Requests rate limit exceeded", "type": "Throttling"}})


def gathering(*pieces: bytes, end: Action | None = None) -> AbstractAsyncContextManager[Cast]:
    """A stage with a Qwen that can only stream, and says these pieces."""
    script: Script = [read(), send(STREAM_HEAD, *map(frame, pieces)), end or send(END)]
    return staged_many({"up": [script]}, upstreams={"up": {"kind": "qwen"}}, models=QWQ, retry={"attempts": 1})


async def test_a_stream_that_nobody_asked_for_is_one_reply() -> None:
    async with gathering(ROLE, THOUGHT, delta("hello"), delta(finish="stop"), USAGE, DONE) as stage:
        response = await stage.ask(chat())

        assert (response.status, response.headers["content-type"]) == (200, "application/json")
        told = orjson.loads(response.body)
        (choice,) = told["choices"]
        assert choice["message"] == {"role": "assistant", "content": "hello", "reasoning_content": "Hm."}
        assert (told["object"], choice["finish_reason"]) == ("chat.completion", "stop")
        (replica,) = stage.replicas["up"]
        assert replica is not None
        (asked,) = replica.requests
        assert orjson.loads(asked.body)["stream"] is True
        line = await stage.records.request()
        assert (line["stream"], line["output_tokens"], line["usage_estimated"]) == (
            False,
            told["usage"]["completion_tokens"],
            False,
        )


@pytest.mark.parametrize(
    ("pieces", "status", "code"),
    [
        ([ROLE, delta("hello"), event("{nonsense"), delta(finish="stop"), DONE], 502, "upstream_invalid_event"),
        ([ROLE, delta("hello"), LATE, DONE], 429, "rate_limit_exceeded"),
        ([ROLE, delta("hello")], 502, "upstream_stream_incomplete"),
        ([ROLE, OTHER], 502, "upstream_stream_incomplete"),
        ([ROLE, delta("hello"), delta(finish="stop")], 502, "upstream_stream_incomplete"),
        ([DONE], 502, "upstream_stream_incomplete"),
        ([], 502, "upstream_stream_incomplete"),
    ],
)
async def test_a_gathered_stream_that_fails_is_a_status(pieces: list[bytes], status: int, code: str) -> None:
    async with gathering(*pieces) as stage:
        response = await stage.ask(chat(n=2))

        assert (response.status, response.error["code"]) == (status, code)
        await stage.settled()


async def test_a_gathered_stream_that_is_cut_is_a_failure_and_not_half_an_answer() -> None:
    async with gathering(ROLE, delta("hello"), delta(finish="stop"), end=close()) as stage:
        response = await stage.ask(chat(n=2))

        assert (response.status, response.error["code"]) == (502, "upstream_truncated")


async def test_a_caller_who_leaves_while_it_is_gathered_ends_it() -> None:
    async with gathering(ROLE, delta("hello"), end=stall()) as stage:
        caller = await stage.caller()
        await caller.send(request(chat()))
        (replica,) = stage.replicas["up"]
        assert replica is not None
        await replica.wait_until(lambda: len(replica.requests) == 1)
        caller.close()
        await replica.wait_until(lambda: replica.open_connections == 0)
        await stage.settled()
        assert stage.attempts(outcome="abandoned") == 1


async def test_attempts_are_told_apart_by_every_kind() -> None:
    gone = answering(refused("500 Oops"))
    async with staged_many({"a": [gone, gone]}, upstreams={"a": ONLY_TEXT}, retry={"attempts": 2}) as stage:
        await stage.ask(PROMPT, path=COMPLETIONS, x_request_id="r-1")

        first, second = (replica.requests[0] for replica in stage.replicas["a"] if replica is not None)
        assert (first.header("x-request-id"), second.header("x-request-id")) == ("r-1", "r-1-2")
        assert orjson.loads(first.body)["text_input"] == "Say something."
