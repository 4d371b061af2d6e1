"""The official SDK with nothing between it and a real llama.cpp but the gateway: what works without, works unchanged."""

import asyncio
import json
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest

from tests.sdk.stage import NARROW_KEY, SENTENCE, Sdk, Stage, saying, told

LONG: dict[str, Any] = {"max_tokens": 60_000, "extra_body": {"ignore_eos": True}}  # takes about 20 seconds


class Verdict(pydantic.BaseModel):
    colour: Literal["red", "green"]
    sure: bool


def tokens_counted(stage: Stage, model: str, type_: str) -> float:
    for line in httpx.get(f"{stage.gateway.admin_url}/metrics").text.splitlines():
        if line.startswith("gateway_tokens_total{") and f'model="{model}"' in line and f'type="{type_}"' in line:
            return float(line.rpartition(" ")[2])
    return 0.0


async def test_a_chat_completion_is_what_it_is_without_the_gateway(sdk: Sdk, direct: Sdk) -> None:
    def ask(client: Any) -> Any:
        return client.chat.completions.create(model="tiny", messages=told(), extra_body=saying())

    reply, expected = await sdk(ask), await direct(ask)
    assert reply.choices[0].message.content == SENTENCE
    assert reply.choices == expected.choices
    assert reply.usage.total_tokens == expected.usage.total_tokens > 0
    assert reply.model_dump().keys() == expected.model_dump().keys()
    assert reply.model_extra["timings"]["predicted_n"] == reply.usage.completion_tokens  # llama.cpp's own, not OpenAI's


async def test_a_stream_is_what_it_is_without_the_gateway_event_by_event(sdk: Sdk, direct: Sdk) -> None:
    def ask(client: Any) -> Any:
        return client.chat.completions.create(model="tiny", messages=told(), stream=True, extra_body=saying())

    events = await sdk.events(ask)
    assert "".join(event.choices[0].delta.content or "" for event in events) == SENTENCE
    assert len(events) > 5
    assert events[0].choices[0].delta.role == "assistant"
    assert [event.choices[0].finish_reason for event in events if event.choices[0].finish_reason] == ["stop"]
    # llama.cpp tells its timings in the event of usage where there is one, and the gateway has asked for that one
    shapes = [event.to_dict(mode="json").keys() - {"timings"} for event in await direct.events(ask)]
    assert [event.to_dict(mode="json").keys() for event in events] == shapes


async def test_a_caller_who_did_not_ask_for_usage_sees_none_and_it_is_counted_all_the_same(
    sdk: Sdk, stage: Stage
) -> None:
    before = tokens_counted(stage, "tiny", "output")
    raw = await sdk(
        lambda client: client.chat.completions.with_raw_response.create(
            model="tiny", messages=told(), max_tokens=7, stream=True, extra_body={"ignore_eos": True}
        )
    )
    events = [event async for event in sdk.each(raw.parse())]
    assert all(event.choices for event in events)
    assert not any("usage" in event.model_fields_set for event in events)
    record = stage.gateway.record(raw.headers["x-request-id"])
    assert (record["output_tokens"], record["usage_estimated"]) == (7, False)
    assert record["input_tokens"] > 5
    assert tokens_counted(stage, "tiny", "output") == before + 7


async def test_a_caller_who_asked_for_usage_gets_it_in_one_last_event_without_choices(sdk: Sdk, direct: Sdk) -> None:
    def ask(client: Any) -> Any:
        options = {"include_usage": True}
        return client.chat.completions.create(
            model="tiny", messages=told(), stream=True, stream_options=options, extra_body=saying()
        )

    events, expected = await sdk.events(ask), await direct.events(ask)
    assert [len(event.choices) for event in events] == [1] * (len(events) - 1) + [0]
    assert [event.usage is None for event in events] == [True] * (len(events) - 1) + [False]
    assert events[-1].usage.total_tokens == expected[-1].usage.total_tokens > 0
    assert "".join(event.choices[0].delta.content or "" for event in events[:-1]) == SENTENCE


async def test_the_answer_says_who_served_it_and_how_long_that_took(sdk: Sdk, stage: Stage) -> None:
    raw = await sdk(
        lambda client: client.chat.completions.with_raw_response.create(model="tiny", messages=told(), max_tokens=2)
    )
    assert raw.headers["x-gateway-upstream"] == "llama"
    assert raw.headers["x-gateway-attempts"] == "1"
    timing = dict(part.strip().split(";dur=") for part in raw.headers["server-timing"].split(","))
    assert set(timing) == {"gateway", "upstream"}
    assert 0 <= float(timing["gateway"]) < 1000
    assert 0 < float(timing["upstream"]) < 10_000
    record = stage.gateway.record(raw.headers["x-request-id"])
    assert (record["key"], record["model"], record["upstream"], record["status"]) == ("tests", "tiny", "llama", 200)


async def test_the_callers_own_request_id_is_kept(sdk: Sdk, stage: Stage) -> None:
    name = f"trace-{'async' if sdk.asynchronous else 'sync'}.1:a_b"
    reply = await sdk(
        lambda client: client.chat.completions.create(
            model="tiny", messages=told(), max_tokens=1, extra_headers={"x-request-id": name}
        )
    )
    assert reply._request_id == name
    assert stage.gateway.record(name)["outcome"] == "served"


async def test_completions_work_plain_and_streaming(sdk: Sdk, direct: Sdk) -> None:
    def ask(client: Any, **more: Any) -> Any:
        return client.completions.create(model="tiny", prompt="Once upon", extra_body=saying(), **more)

    plain = await sdk(ask)
    assert (plain.object, plain.choices[0].text) == ("text_completion", SENTENCE)
    assert plain.usage.completion_tokens > 5
    events, expected = [await each.events(lambda client: ask(client, stream=True)) for each in (sdk, direct)]
    assert "".join(event.choices[0].text for event in events) == SENTENCE
    # here llama.cpp adds usage to the finish unasked, and that is its own affair
    told_usage = [["usage" in event.model_fields_set for event in each] for each in (events, expected)]
    assert told_usage[0] == told_usage[1]


async def test_embeddings_of_several_texts_are_those_of_the_model(sdk: Sdk, direct: Sdk) -> None:
    def ask(client: Any) -> Any:
        return client.embeddings.create(model="tiny", input=["one text", "and another"])

    reply, expected = await sdk(ask), await direct(ask)
    assert [len(item.embedding) for item in reply.data] == [64, 64]
    for item, other in zip(reply.data, expected.data, strict=True):
        assert item.embedding == pytest.approx(other.embedding, abs=1e-4)
    assert reply.usage.prompt_tokens == expected.usage.prompt_tokens > 0


async def test_embeddings_come_as_floats_where_the_caller_wants_floats(sdk: Sdk, stage: Stage) -> None:
    raw = await sdk(
        lambda client: client.embeddings.with_raw_response.create(model="tiny", input="text", encoding_format="float")
    )
    assert isinstance(json.loads(raw.content)["data"][0]["embedding"][0], float)
    record = stage.gateway.record(raw.headers["x-request-id"])
    assert (record["kind"], record["output_tokens"]) == ("embeddings", 0)


async def test_an_alias_is_served_under_the_name_that_the_upstream_knows(sdk: Sdk, stage: Stage) -> None:
    raw = await sdk(
        lambda client: client.chat.completions.with_raw_response.create(
            model="org/alias", messages=told(), max_tokens=1
        )
    )
    record = stage.gateway.record(raw.headers["x-request-id"])
    assert (record["model"], record["upstream_model"]) == ("org/alias", "tiny")


async def test_models_are_listed_and_found_by_name(sdk: Sdk) -> None:
    page = await sdk(lambda client: client.models.list())
    assert [model.id for model in page.data] == ["tiny", "org/alias", "scripted"]
    one = await sdk(lambda client: client.models.retrieve("org/alias"))
    assert (one.id, one.object, one.owned_by) == ("org/alias", "model", "llama")
    with pytest.raises(openai.NotFoundError):
        await sdk(lambda client: client.models.retrieve("nobody"))


async def test_a_narrow_key_sees_and_gets_only_its_own_models(sdk: Sdk) -> None:
    async with sdk.sibling(api_key=NARROW_KEY) as narrow:
        page = await narrow(lambda client: client.models.list())
        assert [model.id for model in page.data] == ["tiny"]
        with pytest.raises(openai.NotFoundError) as caught:
            await narrow(lambda client: client.embeddings.create(model="scripted", input="text"))
        assert caught.value.code == "model_not_found"


async def test_a_base_url_without_v1_works_as_well(sdk: Sdk, stage: Stage) -> None:
    async with sdk.sibling(stage.gateway.url) as bare:
        await bare(lambda client: client.chat.completions.create(model="tiny", messages=told(), max_tokens=1))
        await bare(lambda client: client.completions.create(model="tiny", prompt="Once", max_tokens=1))
        await bare(lambda client: client.embeddings.create(model="tiny", input="text"))
        assert (await bare(lambda client: client.models.retrieve("tiny"))).id == "tiny"


async def test_an_unknown_model_is_a_not_found_error(sdk: Sdk, stage: Stage) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await sdk(lambda client: client.chat.completions.create(model="nobody", messages=told()))
    error = caught.value
    assert (error.code, error.param, error.type) == ("model_not_found", "model", "invalid_request_error")
    assert isinstance(error.body, dict)
    assert set(error.body) == {"message", "type", "param", "code"}
    record = stage.gateway.record(str(error.request_id))
    assert (record["model"], record["attempts"], record["status"]) == ("unknown", 0, 404)


async def test_a_bad_key_is_an_authentication_error(sdk: Sdk) -> None:
    async with sdk.sibling(api_key="sk-nobodys") as stranger:
        with pytest.raises(openai.AuthenticationError) as caught:
            await stranger(lambda client: client.chat.completions.create(model="tiny", messages=told()))
    assert caught.value.code == "invalid_api_key"
    assert "sk-nobodys" not in str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
async def test_what_the_upstream_refuses_is_a_bad_request_error_in_its_own_words(
    sdk: Sdk, direct: Sdk, streaming: bool
) -> None:
    def ask(client: Any) -> Any:
        return client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "word " * 3000}], stream=streaming
        )

    with pytest.raises(openai.BadRequestError) as expected:
        await direct(ask)
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk(ask)
    assert isinstance(caught.value.body, dict)
    assert isinstance(expected.value.body, dict)
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert "context size" in caught.value.body["message"]
    assert caught.value.body["message"] == expected.value.body["message"]
    assert caught.value.type == expected.value.type == "exceed_context_size_error"
    assert caught.value.response.headers["x-should-retry"] == "false"


async def test_log_probabilities_come_through_plain_and_streaming(sdk: Sdk) -> None:
    def ask(client: Any, **more: Any) -> Any:
        return client.chat.completions.create(
            model="tiny", messages=told(), logprobs=True, top_logprobs=2, extra_body=saying("ab ab"), **more
        )

    said = (await sdk(ask)).choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in said).startswith(b"ab ab")
    assert {len(token.top_logprobs) for token in said} == {2}
    events = await sdk.events(lambda client: ask(client, stream=True))
    assert any(event.choices[0].logprobs for event in events)


async def test_several_choices_come_through_plain_and_streaming(sdk: Sdk) -> None:
    def ask(client: Any, **more: Any) -> Any:
        return client.chat.completions.create(model="tiny", messages=told(), max_tokens=3, n=2, **more)

    assert {choice.index for choice in (await sdk(ask)).choices} == {0, 1}
    events = await sdk.events(lambda client: ask(client, stream=True))
    assert {choice.index for event in events for choice in event.choices} == {0, 1}


async def test_a_json_schema_is_kept_to(sdk: Sdk) -> None:
    reply = await sdk(
        lambda client: client.chat.completions.parse(model="tiny", messages=told(), response_format=Verdict)
    )
    assert isinstance(reply.choices[0].message.parsed, Verdict)


async def test_the_sdks_own_reading_of_a_stream_comes_to_the_same_end(sdk: Sdk) -> None:
    def read(client: Any) -> Any:
        with client.chat.completions.stream(model="tiny", messages=told(), response_format=Verdict) as stream:
            return stream.get_final_completion()

    async def read_async(client: Any) -> Any:
        async with client.chat.completions.stream(model="tiny", messages=told(), response_format=Verdict) as stream:
            return await stream.get_final_completion()

    final = await sdk(read_async if sdk.asynchronous else read)
    assert isinstance(final.choices[0].message.parsed, Verdict)


async def test_tools_reach_the_model(sdk: Sdk, direct: Sdk) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": schema}}

    def ask(client: Any, **more: Any) -> Any:
        return client.chat.completions.create(model="tiny", messages=told(), max_tokens=2, **more)

    with_tool, expected = [await each(lambda client: ask(client, tools=[tool])) for each in (sdk, direct)]
    assert with_tool.usage.prompt_tokens == expected.usage.prompt_tokens > (await sdk(ask)).usage.prompt_tokens + 30


async def test_leaving_a_stream_early_cancels_the_work(sdk: Sdk, stage: Stage) -> None:
    since = len(stage.llama.err)
    raw = await sdk(
        lambda client: client.chat.completions.with_raw_response.create(
            model="tiny", messages=told(), stream=True, **LONG
        )
    )
    stream = raw.parse()
    async for event in sdk.each(stream):
        if event.choices[0].delta.content:
            break
    await sdk.close(stream)
    stage.llama.wait_cancelled(since)
    record = stage.gateway.record(raw.headers["x-request-id"])
    assert (record["outcome"], record["end_reason"]) == ("abandoned", "caller_left")
    assert record["output_tokens"] > 0  # what was spent is counted, if only by an estimate
    assert record["usage_estimated"]


@pytest.mark.parametrize("silent", [False, True])
async def test_a_client_side_timeout_cancels_the_work_and_is_told_as_one(sdk: Sdk, stage: Stage, silent: bool) -> None:
    since = len(stage.llama.err)
    name = f"impatient-{silent}-{'async' if sdk.asynchronous else 'sync'}"
    headers = {"x-request-id": name}
    if silent:
        headers["x-stainless-read-timeout"] = "60"  # the SDK says otherwise how long it will wait
    async with sdk.sibling(timeout=0.3, max_retries=0) as impatient:
        with pytest.raises(openai.APITimeoutError if silent else openai.InternalServerError):
            await impatient(
                lambda client: client.chat.completions.create(
                    model="tiny", messages=told(), extra_headers=headers, **LONG
                )
            )
    stage.llama.wait_cancelled(since)
    record = stage.gateway.record(name)
    ended = (499, "caller_left") if silent else (504, "deadline_exceeded")
    assert (record["status"], record["end_reason"], record["outcome"]) == (*ended, "abandoned")


async def test_many_streams_at_once_are_not_mixed_up(sdk: Sdk) -> None:
    async def ask(number: int) -> str:
        events = await sdk.events(
            lambda client: client.chat.completions.create(
                model="tiny", messages=told(), stream=True, extra_body=saying(f"number {number}.")
            )
        )
        return "".join(event.choices[0].delta.content or "" for event in events)

    said = await asyncio.gather(*map(ask, range(16)))
    assert said == [f"number {number}." for number in range(16)]
