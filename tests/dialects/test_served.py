"""Recordings behind a whole gateway: what callers get of upstreams that are not quite OpenAI's."""

import json
from typing import Any

import pytest

from tests.dialects.recordings import RECORDINGS, Recording
from tests.support.stage import END, STREAM_HEAD, Stage, chat, frame, served, staged, staged_many
from tests.support.upstream import Action, forever, read, reply, send


def said(name: str) -> Action:
    """A recording as an upstream's answer."""
    recording: Recording = RECORDINGS[name]
    if recording.streamed:
        return send(STREAM_HEAD, frame(recording.body), END)
    return reply(recording.body, status=f"{recording.status} Status", headers=["content-type: application/json"])


async def asked(stage: Stage, model: str = "m", **members: Any) -> tuple[int, Any, dict[str, Any]]:
    """Status and body of an answer, and what the upstream was asked."""
    response = await stage.ask({**chat(**members), "model": model})
    return response.status, json.loads(response.body), json.loads(stage.upstream.requests[-1].body)


def as_kind(kind: str, model: str = "upstream-m") -> dict[str, Any]:
    return {
        "upstream": {"kind": kind, "health": {"enabled": False}, "load": {"enabled": False} if kind != "qwen" else {}},
        "models": {"m": {"targets": [{"upstream": "up", "model": model}]}},
    }


async def test_a_model_that_only_streams_answers_a_plain_caller() -> None:
    async with staged([read(), said("qwen/reasoning_stream")], **as_kind("qwen", "qwq-plus")) as stage:
        status, body, sent = await asked(stage)
        assert status == 200
        assert body["choices"][0]["message"]["content"] == "\u4f60\u597d"
        assert body["choices"][0]["message"]["reasoning_content"] == "\u55ef\uff0c\u5148\u60f3\u4e00\u60f3\u3002"
        assert body["usage"]["completion_tokens"] == 9
        assert (sent["stream"], sent["stream_options"]) == (True, {"include_usage": True})
        line = await stage.records.request()
        assert (line["status"], line["outcome"], line["stream"], line["output_tokens"]) == (200, "served", False, 9)


async def test_a_stream_that_fails_while_it_is_gathered_is_an_error_with_a_status() -> None:
    async with staged([read(), said("qwen/native_stream_inspection")], **as_kind("qwen", "qwq-plus")) as stage:
        status, body, _ = await asked(stage)
        assert (status, body["error"]["code"]) == (400, "DataInspectionFailed")


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("qwen/native_invalid", 400, "InvalidParameter"),
        ("qwen/native_throttled", 429, "rate_limit_exceeded"),
        ("qwen/tokens_per_minute", 429, "rate_limit_exceeded"),
        ("qwen/free_quota", 503, "upstream_quota"),
        ("qwen/inspection", 400, "data_inspection_failed"),
        ("qwen/wrong_region", 502, "upstream_auth"),
        ("qwen/timeout", 504, "upstream_timeout"),
    ],
)
async def test_qwens_errors_are_openais(name: str, status: int, code: str) -> None:
    async with staged([read(), said(name)], **as_kind("qwen", "qwen-plus")) as stage:
        answer = await asked(stage)
        assert (answer[0], answer[1]["error"]["code"]) == (status, code)


async def test_a_native_error_in_a_stream_is_told_before_anything_is_promised() -> None:
    async with staged([read(), said("qwen/native_stream_throttled")], **as_kind("qwen")) as stage:
        status, body, _ = await asked(stage, stream=True)
        assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded")


async def test_a_native_error_within_a_stream_ends_it() -> None:
    async with staged([read(), said("qwen/native_stream_inspection")], **as_kind("qwen")) as stage:
        response = await stage.ask(chat(stream=True))
        assert response.status == 200
        assert response.body.endswith(b'"code":"DataInspectionFailed"}}\n\n')
        assert b"request_id" not in response.body


@pytest.mark.parametrize("name", ["vllm/queue_full", "vllm/queue_full_in_stream", "vllm/queue_full_after_role"])
async def test_a_full_queue_is_left_for_another_replica_and_is_no_failure_of_its_own(name: str) -> None:
    vllm = {"kind": "vllm", "health": {"enabled": False}, "load": {"enabled": False}}
    scripts = {"up": [[forever(read(), said(name))], [forever(read(), served(stream=True))]]}
    async with staged_many(scripts, upstreams={"up": vllm}) as cast:
        response = await cast.ask(chat(stream=True))
        assert response.status == 200
        assert b"hello" in response.body
        assert cast.state(replica=0) == "cooling"


async def test_one_alias_has_targets_on_both_and_each_is_told_in_its_own_way() -> None:
    busy = [forever(read(), said("vllm/queue_full"))]
    upstreams = {
        "vllm": {"kind": "vllm", "health": {"enabled": False}, "load": {"enabled": False}},
        "qwen": {"kind": "qwen"},
    }
    async with staged_many({"vllm": [busy], "qwen": [[forever(read(), served())]]}, upstreams=upstreams) as cast:
        response = await cast.ask(chat(enable_thinking=False))
        assert response.status == 200
        ours, qwens = (json.loads(cast.replicas[name][0].requests[0].body) for name in ("vllm", "qwen"))  # type: ignore[union-attr]
        assert (ours["chat_template_kwargs"], "enable_thinking" in ours) == ({"enable_thinking": False}, False)
        assert (qwens["enable_thinking"], "chat_template_kwargs" in qwens) == (False, False)


async def test_a_real_engine_that_dies_within_a_stream_is_told_of_in_band() -> None:
    async with staged([read(), said("vllm/died")], **as_kind("vllm")) as stage:
        response = await stage.ask(chat(stream=True))
        assert response.status == 200
        assert response.body.endswith(b'"code":"upstream_error"}}\n\n')
        assert b"EngineCore" not in response.body
        assert b"[DONE]" not in response.body
