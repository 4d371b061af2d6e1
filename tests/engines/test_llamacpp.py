"""A real llama.cpp behind a real gateway, as `kind: llamacpp`: what a service sees of it, and what is known of its load.

Two of them: `first` answers everything, and `spare` is killed by the last tests. They are asked for their load once in 1.5 s,
because llama.cpp looks whether the caller of a plain reply is still there only when for a second it had nothing to tell anyone.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal, NamedTuple

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.support.figures import metric, sums, until, wait_value
from tests.support.processes import GatewayProcess, Llama

pytestmark = [pytest.mark.engines, pytest.mark.anyio]

Sdk = openai.AsyncOpenAI

KEY = "sk-planted-llamas-2Vn8"
LONG: dict[str, Any] = {"max_tokens": 60_000, "extra_body": {"ignore_eos": True}}  # takes about 20 seconds
SLOTS = 4

CONFIG = """\
server: {{host: 127.0.0.1, port: 0, admin_port: 0, drain_seconds: 1}}
auth: {{required: false}}
retry: {{attempts: 1}}
breaker: {{failures: 1, ejection: 300}}
upstreams:
  first: {{kind: llamacpp, url: "{first}/v1", api_key: "{key}", health: {{interval: 0.2}}}}
  spare: {{kind: llamacpp, url: "{spare}/v1", api_key: "{key}", health: {{interval: 0.2}}}}
  stranger: {{kind: llamacpp, url: "{first}/v1", api_key: sk-nobodys}}
  turns: {{kind: llamacpp, urls: ["{first}/v1", "{spare}/v1"], api_key: "{key}", balance: round_robin, retry: {{attempts: 2}}, health: {{enabled: false}}, load: {{enabled: false}}}}
models:
  tiny: {{targets: [{{upstream: first}}]}}
  other: {{targets: [{{upstream: first}}]}}
  spare: {{targets: [{{upstream: spare, model: tiny}}]}}
  stranger: {{targets: [{{upstream: stranger, model: tiny}}]}}
  turns: {{targets: [{{upstream: turns, model: tiny}}]}}
"""


class Stage(NamedTuple):
    """All that is running."""

    first: Llama
    spare: Llama
    gateway: GatewayProcess


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    config = tmp_path_factory.mktemp("llamacpp") / "gateway.yaml"
    with Llama(KEY) as first, Llama(KEY) as spare:
        config.write_text(CONFIG.format(first=first.url, spare=spare.url, key=KEY))
        with GatewayProcess(config) as gateway:
            yield Stage(first, spare, gateway)
    assert gateway.code == 0, list(gateway.err)
    assert [line for line in (*gateway.out, *gateway.err) if KEY in line] == []


@pytest.fixture
async def sdk(stage: Stage) -> AsyncIterator[Sdk]:
    async with openai.AsyncOpenAI(base_url=f"{stage.gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def direct(stage: Stage) -> AsyncIterator[Sdk]:
    """The same SDK, talking to `first` without the gateway."""
    async with openai.AsyncOpenAI(base_url=f"{stage.first.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def said(text: str = "Hello! How can I help you?") -> list[Any]:
    return [{"role": "user", "content": text}]


def asked(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": said(), "max_tokens": 8, "temperature": 0, **more}


class Verdict(BaseModel):
    colour: Literal["red", "green"]
    sure: bool


async def test_a_plain_reply_is_its_own(sdk: Sdk, direct: Sdk) -> None:
    reply, expected = await sdk.chat.completions.create(**asked()), await direct.chat.completions.create(**asked())
    assert reply.choices[0].message.content
    assert reply.choices == expected.choices
    assert reply.usage is not None
    assert expected.usage is not None
    assert reply.usage.total_tokens == expected.usage.total_tokens > 8
    assert reply.to_dict().keys() == expected.to_dict().keys()


async def test_a_stream_is_the_plain_reply_in_pieces(sdk: Sdk) -> None:
    plain = await sdk.chat.completions.create(**asked())
    chunks = [chunk async for chunk in await sdk.chat.completions.create(**asked(stream=True))]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(chunk.usage is None for chunk in chunks)


async def test_usage_comes_in_one_last_event_for_whoever_asks(sdk: Sdk) -> None:
    options = {"include_usage": True}
    chunks = [chunk async for chunk in await sdk.chat.completions.create(**asked(stream=True, stream_options=options))]
    assert [len(chunk.choices) for chunk in chunks] == [1] * (len(chunks) - 1) + [0]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_is_counted_whether_or_not_it_was_asked_for(sdk: Sdk, stage: Stage, stream: bool) -> None:
    raw = await sdk.chat.completions.with_raw_response.create(**asked(stream=stream))
    if stream:
        assert [chunk async for chunk in raw.parse()]
    record = stage.gateway.record(raw.headers["x-request-id"])
    assert (record["output_tokens"], record["usage_estimated"]) == (8, False)
    assert record["input_tokens"] > 5


@pytest.mark.parametrize("stream", [False, True])
async def test_completions_work(sdk: Sdk, direct: Sdk, stream: bool) -> None:
    async def ask(client: Sdk) -> str:
        reply: Any = await client.completions.create(
            model="tiny", prompt="The quick brown", max_tokens=8, temperature=0, stream=stream
        )
        replies = [one async for one in reply] if stream else [reply]
        return "".join(one.choices[0].text for one in replies if one.choices)

    assert await ask(sdk) == await ask(direct) != ""


async def test_embeddings_are_those_of_the_model(sdk: Sdk, direct: Sdk) -> None:
    reply, expected = [await each.embeddings.create(model="tiny", input=["a text", "b"]) for each in (sdk, direct)]
    assert [len(item.embedding) for item in reply.data] == [64, 64]
    assert reply.data[1].embedding == pytest.approx(expected.data[1].embedding, abs=1e-4)


async def test_a_json_schema_is_kept_to(sdk: Sdk) -> None:
    reply = await sdk.chat.completions.parse(**asked(response_format=Verdict, max_tokens=200))
    assert isinstance(reply.choices[0].message.parsed, Verdict)


async def test_enable_thinking_is_looked_at_where_llama_cpp_looks_for_it(sdk: Sdk, direct: Sdk) -> None:
    """The template knows no thinking, but llama.cpp checks the value before it uses one."""
    kwargs = {"chat_template_kwargs": {"enable_thinking": "perhaps"}}
    with pytest.raises(openai.BadRequestError) as expected:
        await direct.chat.completions.create(**asked(extra_body=kwargs))
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.chat.completions.create(**asked(extra_body={"enable_thinking": "perhaps"}))
    assert isinstance(expected.value.body, dict)
    assert isinstance(refused.value.body, dict)
    assert "enable_thinking" in expected.value.body["message"]
    assert refused.value.body["message"] == expected.value.body["message"]


async def test_whatever_it_is_asked_for_is_the_model_that_it_has(sdk: Sdk) -> None:
    assert (await sdk.chat.completions.create(**asked(model="other"))).choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_is_too_long_is_the_callers(sdk: Sdk, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.chat.completions.create(**asked(messages=said("word " * 3000), stream=stream))
    assert refused.value.code == "context_length_exceeded"
    assert "context size" in refused.value.message


async def test_a_bad_parameter_is_told_in_its_words(sdk: Sdk, direct: Sdk) -> None:
    wrong: dict[str, Any] = {"response_format": {"type": "nonsense"}}
    with pytest.raises(openai.BadRequestError) as expected:
        await direct.chat.completions.create(**asked(**wrong))
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.chat.completions.create(**asked(**wrong))
    assert isinstance(refused.value.body, dict)
    assert set(refused.value.body) == {"message", "type", "param", "code"}
    assert refused.value.code is None  # llama.cpp's is the status
    assert isinstance(expected.value.body, dict)
    assert refused.value.body["message"] == expected.value.body["message"]


async def test_a_bad_key_of_ours_is_not_the_callers(sdk: Sdk) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        await sdk.chat.completions.create(**asked(model="stranger"))
    assert (failed.value.status_code, failed.value.code) == (502, "upstream_auth")


# What it is doing, and for whom.


def figures(llama: Llama) -> dict[str, float]:
    """What it says of its load."""
    return sums(f"{llama.url}/metrics", authorization=f"Bearer {KEY}")


def working(llama: Llama, number: int) -> None:
    """Wait until it works on so many calls."""
    until(lambda: figures(llama), lambda seen: seen["llamacpp:requests_processing"] == number)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_who_leaves_ends_the_work(sdk: Sdk, stage: Stage, stream: bool) -> None:
    since = len(stage.first.err)
    asking = asyncio.create_task(sdk.chat.completions.create(**asked(stream=stream, **LONG)))
    await asyncio.to_thread(working, stage.first, 1)
    if stream:
        await (await asking).close()
    else:
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    await asyncio.to_thread(stage.first.wait_cancelled, since)
    await asyncio.to_thread(working, stage.first, 0)


async def test_the_gateway_knows_what_runs_and_waits_there_whoever_sent_it(direct: Sdk, stage: Stage) -> None:
    async def wait(running: float, waiting: float) -> None:
        for name, number in (("running", running), ("waiting", waiting)):
            family = f"gateway_upstream_engine_{name}"
            await asyncio.to_thread(wait_value, stage.gateway, number, family, upstream="first")

    await wait(0, 0)
    calls = (direct.chat.completions.create(**asked(stream=True, **LONG)) for _ in range(SLOTS + 2))
    asking = [asyncio.create_task(call) for call in calls]
    await wait(SLOTS, 2)
    assert metric(stage.gateway, "gateway_upstream_inflight", upstream="first") == 0
    for one in asking:
        if one.done():
            await (await one).close()
        one.cancel()
    await asyncio.wait(asking)
    await wait(0, 0)


def test_a_server_that_is_well_is_available(stage: Stage) -> None:
    for upstream in ("first", "spare"):
        assert metric(stage.gateway, "gateway_upstream_state", upstream=upstream, state="available") == 1


# What ends `spare`.


async def test_a_server_killed_within_a_stream_ends_it_with_an_error_and_is_tried_elsewhere(
    sdk: Sdk, stage: Stage
) -> None:
    body = {"model": "spare", "messages": said(), "stream": True, "max_tokens": 60_000, "ignore_eos": True}
    plain = {"model": "turns", "max_tokens": 2000, "extra_body": {"ignore_eos": True}}
    url = f"{stage.gateway.url}/v1/chat/completions"
    async with (
        httpx.AsyncClient(trust_env=False, timeout=60) as client,
        client.stream("POST", url, json=body) as answer,
    ):
        assert answer.status_code == 200
        reads = answer.aiter_raw()
        got = await anext(reads)
        # one of these two is at the same server, and neither may notice
        others = [asyncio.create_task(sdk.chat.completions.create(**asked(**plain))) for _ in range(2)]
        await asyncio.to_thread(working, stage.spare, 2)
        stage.spare.kill()
        got += b"".join([read async for read in reads])
    *events, last, end = got.split(b"\n\n")
    assert end == b""
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert error["code"] == "upstream_stream_interrupted"
    assert b"[DONE]" not in got
    assert len(events) > 1
    replies = await asyncio.gather(*others)
    assert [reply.usage and reply.usage.completion_tokens for reply in replies] == [2000, 2000]


def test_a_server_that_died_is_out(stage: Stage) -> None:
    state, dead = "gateway_upstream_state", stage.spare.url.removeprefix("http://")
    wait_value(stage.gateway, 1, state, upstream="spare", state="unhealthy")
    assert metric(stage.gateway, state, upstream="turns", replica=dead, state="ejected") == 1
    wait_value(stage.gateway, None, "gateway_upstream_engine_running", upstream="spare")


async def test_calls_after_that_are_served_at_once_by_the_other(sdk: Sdk) -> None:
    for _ in range(4):
        raw = await sdk.chat.completions.with_raw_response.create(**asked(model="turns"))
        assert raw.headers["x-gateway-attempts"] == "1"


@pytest.mark.parametrize("stream", [False, True])
async def test_where_there_is_no_other_a_dead_server_is_told_plainly(sdk: Sdk, stream: bool) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        await sdk.chat.completions.create(**asked(model="spare", stream=stream))
    assert (failed.value.status_code, failed.value.code) == (502, "upstream_unreachable")
