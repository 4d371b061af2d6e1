"""What a service may rely on, asked of a real API through a real gateway. Each call is as short as it can be."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.live.conftest import NOBODY, PATIENCE, Stage

pytestmark = [pytest.mark.live, pytest.mark.anyio]

Sdk = openai.AsyncOpenAI

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def asked(stage: Stage, text: str = "Say hello, in one word.", **more: Any) -> dict[str, Any]:
    return {"model": stage.vendor.chat, "messages": [{"role": "user", "content": text}], "max_tokens": 16, **more}


async def test_the_key_is_taken_and_the_models_are_there(stage: Stage) -> None:
    """`gateway check --online` lists them; the second upstream has a key of nobody's."""
    gateway = Path(sys.executable).parent / "gateway"
    command = [str(gateway), "check", "--online", "--config", str(stage.config)]
    check = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, env={**os.environ, **stage.environ}
    )
    (real,) = [line for line in check.stdout.splitlines() if line.startswith("real at")]
    (stranger,) = [line for line in check.stderr.splitlines() if line.startswith("stranger at")]
    assert ": ok, " in real
    assert "refused: 401" in stranger
    assert stage.vendor.key not in check.stdout + check.stderr


async def test_a_plain_call_gets_one_reply_and_its_usage_is_counted(sdk: Sdk, stage: Stage) -> None:
    raw = await sdk.chat.completions.with_raw_response.create(**asked(stage))
    reply = raw.parse()
    assert reply.object == "chat.completion"
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.content
    assert reply.choices[0].finish_reason in {"stop", "length"}
    assert reply.usage is not None
    record = stage.gateway.record(raw.headers["x-request-id"])
    assert (record["input_tokens"], record["output_tokens"]) == (
        reply.usage.prompt_tokens,
        reply.usage.completion_tokens,
    )
    assert record["usage_estimated"] is False


async def test_a_stream_comes_in_pieces_and_is_counted_without_being_asked(sdk: Sdk, stage: Stage) -> None:
    raw = await sdk.chat.completions.with_raw_response.create(**asked(stage, stream=True))
    chunks = [chunk async for chunk in raw.parse()]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert any(chunk.choices[0].delta.role == "assistant" for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] in (
        ["stop"],
        ["length"],
    )
    record = stage.gateway.record(raw.headers["x-request-id"])
    assert (record["outcome"], record["end_reason"], record["usage_estimated"]) == ("served", "done", False)
    assert record["input_tokens"] > 0
    assert record["output_tokens"] > 0


async def test_usage_comes_in_one_last_event_for_whoever_asks(sdk: Sdk, stage: Stage) -> None:
    options = {"include_usage": True}
    stream = await sdk.chat.completions.create(**asked(stage, stream=True, stream_options=options))
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == chunks[-1].usage.prompt_tokens + chunks[-1].usage.completion_tokens > 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_is_called(sdk: Sdk, stage: Stage, stream: bool) -> None:
    create = asked(stage, "What is the weather in Paris? Use the tool.", tools=[WEATHER], max_tokens=64, stream=stream)
    reply: Any = await sdk.chat.completions.create(**create)
    if stream:
        choices = [chunk.choices[0] async for chunk in reply if chunk.choices]
        functions = [call.function for choice in choices for call in choice.delta.tool_calls or () if call.function]
        finish = choices[-1].finish_reason
    else:
        functions = [call.function for call in reply.choices[0].message.tool_calls]
        finish = reply.choices[0].finish_reason
    assert "".join(function.name or "" for function in functions) == "weather"
    assert "paris" in json.loads("".join(function.arguments or "" for function in functions))["city"].lower()
    assert finish == "tool_calls"


async def test_json_is_json(sdk: Sdk, stage: Stage) -> None:
    text = 'Answer in JSON: {"colour": the colour of snow}'
    create = asked(stage, text, response_format={"type": "json_object"}, max_tokens=32)
    reply = await sdk.chat.completions.create(**create)
    assert "colour" in json.loads(reply.choices[0].message.content or "")


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_embeddings_have_the_size_that_is_asked_for(sdk: Sdk, stage: Stage, encoding: Any) -> None:
    if stage.vendor.kind == "qwen" and encoding == "base64":
        pytest.skip("DashScope documents float alone")
    raw = await sdk.embeddings.with_raw_response.create(
        model=stage.vendor.embeddings, input=["a text", "and another"], dimensions=256, encoding_format=encoding
    )
    items = raw.http_response.json()["data"]
    assert [item["index"] for item in items] == [0, 1]
    assert isinstance(items[0]["embedding"], str if encoding == "base64" else list)
    assert encoding == "base64" or len(items[0]["embedding"]) == 256
    record = stage.gateway.record(raw.headers["x-request-id"])
    assert (record["output_tokens"], record["usage_estimated"]) == (0, False)
    assert record["input_tokens"] > 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_that_is_not_there_is_not_found(sdk: Sdk, stage: Stage, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await sdk.chat.completions.create(**{**asked(stage), "model": NOBODY, "stream": stream})
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bad_parameter_is_told_in_their_words(sdk: Sdk, stage: Stage, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.chat.completions.create(**asked(stage, temperature=17, stream=stream))
    assert isinstance(refused.value.body, dict)
    assert set(refused.value.body) == {"message", "type", "param", "code"}
    assert "temperature" in refused.value.body["message"].lower()


async def test_a_bad_key_of_ours_is_not_the_callers(sdk: Sdk, stage: Stage) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        await sdk.chat.completions.create(**{**asked(stage), "model": "stranger"})
    assert (failed.value.status_code, failed.value.code) == (502, "upstream_auth")


async def test_a_caller_who_leaves_is_told_of_as_one(sdk: Sdk, stage: Stage) -> None:
    raw = await sdk.chat.completions.with_raw_response.create(
        **asked(stage, "Count from one to a thousand, in words.", max_tokens=400, stream=True)
    )
    stream = raw.parse()
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    await stream.close()
    record = await asyncio.to_thread(stage.gateway.record, raw.headers["x-request-id"])
    assert (record["outcome"], record["end_reason"]) == ("abandoned", "caller_left")


# What Qwen has more.


@pytest.fixture
def hybrid(stage: Stage) -> str:
    """A model that thinks unless it is told not to."""
    if stage.vendor.hybrid is None:
        pytest.skip(f"{stage.vendor.kind} has no models that must be told not to think")
    return stage.vendor.hybrid


async def test_a_plain_call_that_says_nothing_of_thinking_is_served(sdk: Sdk, stage: Stage, hybrid: str) -> None:
    reply = await sdk.chat.completions.create(**{**asked(stage), "model": hybrid})
    assert reply.choices[0].message.content
    assert not getattr(reply.choices[0].message, "reasoning_content", None)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("way", ["top", "kwargs"])
async def test_whoever_wants_it_to_think_gets_its_thoughts(
    sdk: Sdk, stage: Stage, hybrid: str, way: str, stream: bool
) -> None:
    wish = {"enable_thinking": True}
    body = {**(wish if way == "top" else {"chat_template_kwargs": wish}), "thinking_budget": 32}
    create = {**asked(stage, max_tokens=64), "model": hybrid, "extra_body": body, "stream": stream}
    reply: Any = await sdk.chat.completions.create(**create)
    pieces = [chunk.choices[0].delta async for chunk in reply if chunk.choices] if stream else []
    said = pieces or [reply.choices[0].message]
    assert "".join(getattr(one, "reasoning_content", None) or "" for one in said)
