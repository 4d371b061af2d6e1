"""A real vLLM behind a real gateway: what a service sees of it. `direct` is the same question without the gateway."""

import asyncio
import json
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.support.processes import Process
from tests.vllm.conftest import ADAPTER, Stage, version
from tests.vllm.server import KEY, NAME

pytestmark = [pytest.mark.vllm, pytest.mark.anyio]

Sdk = openai.AsyncOpenAI
LONG: dict[str, Any] = {"max_tokens": 30_000, "extra_body": {"ignore_eos": True}}


def said(text: str = "Hello! How can I help you?") -> list[Any]:
    return [{"role": "user", "content": text}]


def asked(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": said(), "max_tokens": 8, "temperature": 0, **more}


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Verdict(BaseModel):
    colour: Colour
    sure: bool


LOOK: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def test_it_is_the_vllm_that_is_locked() -> None:
    lock = Path(__file__).parents[2] / "requirements" / "vllm.txt"
    assert f"\nvllm-cpu=={version()} \\\n" in lock.read_text(encoding="utf-8")


async def test_a_plain_reply_is_vllms_own(sdk: Sdk, direct: Sdk) -> None:
    reply, expected = await sdk.chat.completions.create(**asked()), await direct.chat.completions.create(**asked())
    assert reply.choices[0].message.content
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert (reply.usage.completion_tokens, reply.model) == (8, NAME)
    same = [one.to_dict(mode="json", exclude_unset=False) for one in (reply, expected)]
    for one in same:
        del one["id"], one["created"]
    assert same[0] == same[1]


async def test_a_stream_is_the_plain_reply_in_pieces(sdk: Sdk, direct: Sdk) -> None:
    plain = await sdk.chat.completions.create(**asked())
    chunks = [chunk async for chunk in await sdk.chat.completions.create(**asked(stream=True))]
    expected = [chunk async for chunk in await direct.chat.completions.create(**asked(stream=True))]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "length"
    # vLLM is asked for usage, which this caller did not want
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1
    # which moves its fingerprint to the event of usage
    shapes = [chunk.model_fields_set - {"system_fingerprint"} for chunk in expected]
    assert [chunk.model_fields_set for chunk in chunks] == shapes


async def test_usage_comes_in_one_last_event_for_whoever_asks(sdk: Sdk) -> None:
    options = {"include_usage": True}
    chunks = [chunk async for chunk in await sdk.chat.completions.create(**asked(stream=True, stream_options=options))]
    assert [len(chunk.choices) for chunk in chunks] == [1] * (len(chunks) - 1) + [0]
    assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


async def test_usage_in_every_event_goes_through_for_whoever_asks(sdk: Sdk) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = await sdk.chat.completions.create(**asked(stream=True, stream_options=options))
    counted = [chunk.usage.completion_tokens async for chunk in stream if chunk.usage is not None]
    assert counted == sorted(counted)
    assert (counted[0], counted[-1]) == (0, 8)
    assert len(counted) > 2


async def test_usage_is_counted_where_nobody_asked(sdk: Sdk, stage: Stage) -> None:
    raw = await sdk.chat.completions.with_raw_response.create(**asked(stream=True))
    assert [chunk async for chunk in raw.parse()]
    record = stage.gateway.record(raw.headers["x-request-id"])
    plain = await sdk.chat.completions.create(**asked())
    assert plain.usage is not None
    assert (record["output_tokens"], record["usage_estimated"]) == (8, False)
    assert record["input_tokens"] == plain.usage.prompt_tokens


async def test_vllm_knows_a_call_by_the_callers_request_id(sdk: Sdk, stage: Stage) -> None:
    reply = await sdk.chat.completions.create(**asked(extra_headers={"x-request-id": "trace-17"}))
    assert reply._request_id == "trace-17"
    assert reply.id.startswith("chatcmpl-trace-17")
    stage.first.wait_said("Received request chatcmpl-trace-17")


@pytest.mark.parametrize("stream", [False, True])
async def test_completions_work(sdk: Sdk, direct: Sdk, stream: bool) -> None:
    async def ask(client: Sdk) -> str:
        reply: Any = await client.completions.create(
            model="tiny", prompt="The quick brown", max_tokens=8, temperature=0, stream=stream
        )
        replies = [one async for one in reply] if stream else [reply]
        return "".join(one.choices[0].text for one in replies if one.choices)

    assert await ask(sdk) == await ask(direct) != ""


async def test_several_choices_and_log_probabilities_come_through(sdk: Sdk) -> None:
    more: dict[str, Any] = {"n": 2, "logprobs": True, "top_logprobs": 2, "temperature": 1}
    reply = await sdk.chat.completions.create(**asked(**more))
    assert {choice.index for choice in reply.choices} == {0, 1}
    assert reply.choices[0].logprobs is not None
    assert reply.choices[0].logprobs.content is not None
    assert {len(token.top_logprobs) for token in reply.choices[0].logprobs.content} == {2}
    chunks = [chunk async for chunk in await sdk.chat.completions.create(**asked(**more, stream=True))]
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}
    assert sum(choice.finish_reason is not None for chunk in chunks for choice in chunk.choices) == 2


# Tools and schemas. The weights are random, so whatever fits was forced to. The most likely word is always more white space.

GUESSING: dict[str, Any] = {"temperature": 1, "seed": 7, "max_tokens": 300}


@pytest.mark.parametrize(
    ("choice", "finish"), [("required", "tool_calls"), ({"type": "function", "function": {"name": "look"}}, "stop")]
)
async def test_a_tool_is_called(sdk: Sdk, choice: Any, finish: str) -> None:
    reply = await sdk.chat.completions.create(**asked(tools=[LOOK], tool_choice=choice, **GUESSING))
    call = (reply.choices[0].message.tool_calls or [])[0]
    assert call.type == "function"
    assert call.function.name == "look"
    assert json.loads(call.function.arguments)["city"] in {"Paris", "Rome"}
    assert reply.choices[0].finish_reason == finish


async def test_a_tool_is_called_in_pieces(sdk: Sdk) -> None:
    create = asked(tools=[LOOK], tool_choice={"type": "function", "function": {"name": "look"}}, **GUESSING)
    pieces = [
        piece.function
        async for chunk in await sdk.chat.completions.create(**create, stream=True)
        for choice in chunk.choices
        for piece in choice.delta.tool_calls or ()
        if piece.function is not None
    ]
    assert "".join(piece.name or "" for piece in pieces) == "look"
    assert json.loads("".join(piece.arguments or "" for piece in pieces))["city"] in {"Paris", "Rome"}
    assert len(pieces) > 2


async def test_a_json_schema_is_kept_to(sdk: Sdk) -> None:
    reply = await sdk.chat.completions.parse(**asked(response_format=Verdict, max_tokens=100))
    assert isinstance(reply.choices[0].message.parsed, Verdict)


async def test_a_json_schema_is_kept_to_in_a_stream(sdk: Sdk) -> None:
    async with sdk.chat.completions.stream(**asked(response_format=Verdict, max_tokens=100)) as stream:
        final = await stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Verdict)


# Thinking. The template writes more where it is told that nobody wants it, so that the prompt is longer.


async def prompt_tokens(client: Sdk, **more: Any) -> int:
    reply = await client.chat.completions.create(**asked(max_tokens=1, **more))
    counted: int = reply.usage.prompt_tokens
    return counted


@pytest.mark.parametrize("stream", [False, True])
async def test_enable_thinking_reaches_the_template(sdk: Sdk, direct: Sdk, stage: Stage, stream: bool) -> None:
    usual = await prompt_tokens(direct)
    unthought = await prompt_tokens(direct, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert unthought > usual
    assert await prompt_tokens(direct, extra_body={"enable_thinking": False}) == usual  # vLLM does not look there

    async def told(value: bool) -> int:
        raw = await sdk.chat.completions.with_raw_response.create(
            **asked(max_tokens=1, stream=stream, extra_body={"enable_thinking": value})
        )
        if stream:
            assert [chunk async for chunk in raw.parse()]
        counted: int = stage.gateway.record(raw.headers["x-request-id"])["input_tokens"]
        return counted

    assert (await told(False), await told(True)) == (unthought, usual)


async def test_what_vllm_itself_knows_reaches_the_template_too(sdk: Sdk) -> None:
    kwargs = {"chat_template_kwargs": {"enable_thinking": False}}
    assert await prompt_tokens(sdk, extra_body=kwargs) > await prompt_tokens(sdk)


# Adapters.


async def test_an_adapter_is_a_model(sdk: Sdk, direct: Sdk) -> None:
    base = await sdk.chat.completions.create(**asked())
    adapted = await sdk.chat.completions.create(**asked(model=ADAPTER))
    expected = await direct.chat.completions.create(**asked(model=ADAPTER))
    assert adapted.model == ADAPTER
    assert adapted.choices[0].message.content == expected.choices[0].message.content
    assert adapted.choices[0].message.content != base.choices[0].message.content


def test_adapters_are_found_by_a_check(stage: Stage) -> None:
    gateway = Path(sys.executable).parent / "gateway"
    command = [str(gateway), "check", "--online", "--config", str(stage.config)]
    check = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    lines = check.stdout.splitlines() + check.stderr.splitlines()
    assert f"first at {stage.first.root.removeprefix('http://')}: ok, 2 models" in lines
    assert any(line.startswith("first at") and line.endswith("warning: does not list nope") for line in lines)
    assert any(line.startswith("stranger at") and "refused: 401" in line for line in lines)
    assert check.returncode == 1


class FromEnvironment(Process):
    """`gateway serve` with no file, at that vLLM."""

    def __init__(self, url: str) -> None:
        gateway = Path(sys.executable).parent / "gateway"
        command = [str(gateway), "serve", "--port", "0", "--admin-port", "0"]
        super().__init__(command, {"VLLM_URL": url, "VLLM_API_KEY": KEY, "OPENAI_API_KEY": "sk-of-nobody"})
        self.url = ""

    def started(self) -> None:
        listening = json.loads(self.out.wait(lambda line: '"event":"listening"' in line))
        self.url = f"http://{listening['host']}:{listening['port']}"


def test_adapters_are_models_of_a_gateway_that_was_told_only_where_vllm_is(stage: Stage) -> None:
    with FromEnvironment(stage.first.root) as gateway:
        listed = httpx.get(f"{gateway.url}/v1/models", trust_env=False).json()["data"]
        assert {NAME, ADAPTER} <= {model["id"] for model in listed}
        body = asked(model=ADAPTER)
        reply = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, trust_env=False, timeout=60)
    assert (reply.status_code, reply.json()["model"]) == (200, ADAPTER)


# Embeddings.


async def test_embeddings_are_those_of_the_model(sdk: Sdk, stage: Stage) -> None:
    async with openai.AsyncOpenAI(base_url=stage.embedder.url, api_key=KEY, timeout=60) as embedder:
        expected = await embedder.embeddings.create(model=NAME, input=["one text", "and another"])
    reply = await sdk.embeddings.create(model="embedder", input=["one text", "and another"])
    assert [item.embedding for item in reply.data] == [item.embedding for item in expected.data]
    assert len(reply.data[0].embedding) == 64
    assert reply.data[0].embedding != reply.data[1].embedding
    assert reply.usage.prompt_tokens == expected.usage.prompt_tokens > 0


async def test_embeddings_come_as_floats_where_the_caller_wants_floats(sdk: Sdk, stage: Stage) -> None:
    raw = await sdk.embeddings.with_raw_response.create(model="embedder", input="text", encoding_format="float")
    assert isinstance(json.loads(raw.content)["data"][0]["embedding"][0], float)
    record = stage.gateway.record(raw.headers["x-request-id"])
    assert (record["kind"], record["output_tokens"], record["usage_estimated"]) == ("embeddings", 0, False)
    assert record["input_tokens"] > 0


async def test_a_server_that_does_not_embed_says_not_found(sdk: Sdk) -> None:
    with pytest.raises(openai.NotFoundError):
        await sdk.embeddings.create(model="tiny", input="text")


async def test_a_server_that_only_embeds_says_not_found_to_chat(sdk: Sdk) -> None:
    with pytest.raises(openai.NotFoundError):
        await sdk.chat.completions.create(**asked(model="embedder"))


# What it refuses.


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_is_too_long_is_the_callers(sdk: Sdk, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.chat.completions.create(**asked(messages=said("fox " * 40_000), stream=stream))
    assert refused.value.code == "context_length_exceeded"
    assert "context length" in refused.value.message


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_that_it_does_not_have_is_not_found(sdk: Sdk, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await sdk.chat.completions.create(**asked(model="nope", stream=stream))
    assert refused.value.code == "model_not_found"


async def test_a_bad_parameter_is_told_in_its_words(sdk: Sdk, direct: Sdk) -> None:
    with pytest.raises(openai.BadRequestError) as expected:
        await direct.chat.completions.create(**asked(temperature=-3))
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.chat.completions.create(**asked(temperature=-3))
    assert isinstance(expected.value.body, dict)
    assert isinstance(refused.value.body, dict)
    assert set(refused.value.body) == {"message", "type", "param", "code"}
    assert refused.value.body["message"] == expected.value.body["message"]
    assert refused.value.body["param"] == expected.value.body["param"]


async def test_a_bad_key_of_ours_is_not_the_callers(sdk: Sdk) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        await sdk.chat.completions.create(**asked(model="stranger"))
    assert (failed.value.status_code, failed.value.code) == (502, "upstream_auth")


# What it is doing, and for whom.


async def test_a_caller_who_leaves_a_stream_ends_the_work(sdk: Sdk, stage: Stage) -> None:
    since = len(stage.first.out)
    stream = await sdk.chat.completions.create(**asked(stream=True, **LONG))
    events = aiter(stream)
    for _ in range(3):
        await anext(events)
    await asyncio.to_thread(stage.first.wait_running, 1)
    await stream.close()
    await asyncio.to_thread(stage.first.wait_said, "Aborted request", since)
    await asyncio.to_thread(stage.first.wait_running, 0)


async def test_a_caller_who_leaves_a_plain_call_ends_the_work(sdk: Sdk, stage: Stage) -> None:
    since = len(stage.first.out)
    asking = asyncio.create_task(sdk.chat.completions.create(**asked(**LONG)))
    await asyncio.to_thread(stage.first.wait_running, 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.to_thread(stage.first.wait_said, "Aborted request", since)
    await asyncio.to_thread(stage.first.wait_running, 0)


async def test_the_gateway_knows_what_runs_at_vllm_whoever_sent_it(direct: Sdk, stage: Stage) -> None:
    async def wait(running: float) -> None:
        await asyncio.to_thread(stage.wait_value, running, "gateway_upstream_engine_running", upstream="first")

    await wait(0)
    assert stage.metric("gateway_upstream_engine_waiting", upstream="first") == 0
    async with await direct.chat.completions.create(**asked(stream=True, **LONG)) as stream:
        await anext(aiter(stream))
        await wait(1)
        kv = stage.metric("gateway_upstream_engine_kv_usage", upstream="first")
        assert kv is not None
        assert 0 < kv < 1
        assert stage.metric("gateway_upstream_inflight", upstream="first") == 0
    await wait(0)


def test_a_server_that_is_well_is_available(stage: Stage) -> None:
    for upstream in ("first", "spare", "embedder"):
        assert stage.metric("gateway_upstream_state", upstream=upstream, state="available") == 1
