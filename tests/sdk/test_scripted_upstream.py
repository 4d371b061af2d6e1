"""What the official SDK makes of an upstream that fails: the right class of error, once, and never a quiet end."""

import asyncio
import json
import time
from typing import Any

import openai
import pytest

from tests.sdk.stage import (
    CALLERS_KEY,
    DONE,
    LAST_CHUNK,
    SCRIPTS_KEY,
    STREAM_HEAD,
    Sdk,
    Stage,
    Standing,
    chat_reply,
    chunk,
    delta,
    event,
    json_reply,
    stream,
    told,
    whole_stream,
)
from tests.support.upstream import ScriptedUpstream, close, forever, read, reply, reset, send, wait_for

TEXT = 'Ünïcödé: 東京, 🎉👩‍👩‍👧, \u202bعربي\u202c, e\u0301, \U0001f1ef\U0001f1f5 and \\n "quotes"\u2028.'


def chat(client: Any, **more: Any) -> Any:
    return client.chat.completions.create(model="scripted", messages=told(), **more)


def chat_stream(client: Any, **more: Any) -> Any:
    return chat(client, stream=True, **more)


async def until_error(sdk: Sdk, heard: asyncio.Event | None = None) -> tuple[str, Any, str]:
    """Read a stream that ends in an error: the text before it, the error, and the request's id.

    `heard` is set when two events are here.
    """
    opened = await sdk(chat_stream)
    said: list[str] = []

    async def listen() -> None:
        async for each in sdk.each(opened):
            said.append(each.choices[0].delta.content or "")
            if heard and len(said) == 2:
                heard.set()

    with pytest.raises(openai.APIError) as caught:
        await listen()
    return "".join(said), caught.value, opened.response.headers["x-request-id"]


async def gone(upstream: ScriptedUpstream) -> None:
    """Wait until the gateway has closed all its connections, which it must do within a second."""
    async with asyncio.timeout(1):
        await upstream.wait_until(lambda: upstream.open_connections == 0)


@pytest.mark.parametrize("ask", [chat, chat_stream])
async def test_a_500_is_an_internal_server_error_and_the_sdk_does_not_multiply_the_attempts(
    sdk: Sdk, standing: Standing, ask: Any
) -> None:
    failure = {"error": {"message": "secret detail", "type": "server_error", "param": None, "code": None}}
    async with standing([forever(read(), json_reply(failure, "500 Internal Server Error"))]) as upstream:
        with pytest.raises(openai.InternalServerError) as caught:
            await sdk(ask)
        assert len(upstream.requests) == int(caught.value.response.headers["x-gateway-attempts"])
    error = caught.value
    assert (error.status_code, error.code, error.type) == (502, "upstream_error", "server_error")
    assert error.response.headers["x-should-retry"] == "false"
    assert "secret detail" not in str(error)


@pytest.mark.parametrize("ask", [chat, chat_stream])
async def test_a_429_is_a_rate_limit_error_that_says_when_to_come_back(sdk: Sdk, standing: Standing, ask: Any) -> None:
    failure = {"error": {"message": "Slow down.", "type": "requests", "param": None, "code": "rate_limit_exceeded"}}
    answer = json_reply(failure, "429 Too Many Requests", ("retry-after: 7",))
    async with standing([forever(read(), answer)]) as upstream:
        with pytest.raises(openai.RateLimitError) as caught:
            await sdk(ask)
        assert len(upstream.requests) == int(caught.value.response.headers["x-gateway-attempts"])
    headers = caught.value.response.headers
    assert (headers["retry-after"], headers["x-should-retry"]) == ("7", "false")
    assert caught.value.code == "rate_limit_exceeded"


async def test_an_upstream_that_hangs_up_instead_of_answering_is_an_internal_server_error(
    sdk: Sdk, standing: Standing, stage: Stage
) -> None:
    async with standing([read(), reset()]) as upstream:
        with pytest.raises(openai.InternalServerError) as caught:
            await sdk(chat)
        assert len(upstream.requests) == int(caught.value.response.headers["x-gateway-attempts"])
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_reset")
    assert stage.gateway.record(str(caught.value.request_id))["outcome"] == "failed"


async def test_an_error_event_after_content_is_raised_where_it_stands(
    sdk: Sdk, standing: Standing, stage: Stage
) -> None:
    failure = {"error": {"message": "secret detail", "type": "server_error", "param": None, "code": None}}
    async with standing(whole_stream(delta("Hel"), delta("lo"), event(failure))):
        text, error, request_id = await until_error(sdk)
    assert text == "Hello"
    assert not isinstance(error, openai.APIStatusError)
    assert set(error.body) == {"message", "type", "param", "code"}
    assert error.code == "upstream_error"
    assert "secret detail" not in str(error)
    record = stage.gateway.record(request_id)
    assert (record["status"], record["outcome"]) == (200, "failed")


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        pytest.param([reset()], "upstream_stream_interrupted", id="reset"),
        pytest.param([close()], "upstream_stream_interrupted", id="closed"),
        pytest.param([send(LAST_CHUNK), close()], "upstream_stream_incomplete", id="ended early"),
    ],
)
async def test_a_stream_that_is_cut_is_never_taken_for_a_whole_one(
    sdk: Sdk, standing: Standing, ending: list[Any], code: str
) -> None:
    heard = asyncio.Event()
    async with standing([*stream(delta("Hel"), delta("lo")), wait_for(heard), *ending]):
        text, error, _ = await until_error(sdk, heard)
    assert (text, error.type, error.code) == ("Hello", "server_error", code)


async def test_an_event_that_is_no_json_ends_the_stream_with_an_error(sdk: Sdk, standing: Standing) -> None:
    async with standing(whole_stream(delta("Hel"), b"data: {oops\n\n", delta("lo", "stop"))):
        text, error, _ = await until_error(sdk)
    assert (text, error.code) == ("Hel", "upstream_invalid_event")


@pytest.mark.parametrize(
    ("code", "kind"),
    [(None, openai.InternalServerError), (400, openai.BadRequestError), (429, openai.RateLimitError)],
)
async def test_an_error_in_a_streams_first_event_is_a_status_of_its_own(
    sdk: Sdk, standing: Standing, code: int | None, kind: type[openai.APIStatusError]
) -> None:
    failure = {"error": {"message": "No.", "type": "server_error", "param": None, "code": code}}
    async with standing([forever(*whole_stream(event(failure)))]):
        with pytest.raises(kind) as caught:
            await sdk(chat_stream)
    assert caught.value.response.headers["x-should-retry"] == "false"


async def test_a_200_that_holds_an_error_is_a_status_of_its_own(sdk: Sdk, standing: Standing) -> None:
    failure = {"error": {"message": "No.", "type": "server_error", "param": None, "code": None}}
    async with standing([forever(read(), json_reply(failure))]):
        with pytest.raises(openai.InternalServerError):
            await sdk(chat)


async def test_a_page_of_html_is_not_handed_on_as_an_answer(sdk: Sdk, standing: Standing) -> None:
    page = reply(b"<html>Bad gateway</html>", headers=["content-type: text/html"])
    async with standing([forever(read(), page)]):
        with pytest.raises(openai.InternalServerError) as caught:
            await sdk(chat)
    assert caught.value.code == "upstream_bad_content_type"


async def test_a_refused_key_of_the_gateways_own_is_no_matter_of_the_callers(sdk: Sdk, standing: Standing) -> None:
    failure = {"error": {"message": "Bad key sk-...", "type": "x", "param": None, "code": "invalid_api_key"}}
    async with standing([forever(read(), json_reply(failure, "401 Unauthorized"))]):
        with pytest.raises(openai.InternalServerError) as caught:
            await sdk(chat)
    assert caught.value.code == "upstream_auth"
    assert "sk-" not in str(caught.value)


async def test_the_upstream_gets_the_gateways_key_and_nothing_of_the_callers_head(sdk: Sdk, standing: Standing) -> None:
    async with standing([read(), chat_reply("Yes.")]) as upstream:
        await sdk(lambda client: chat(client, extra_headers={"x-planted": "head", "cookie": "planted=1"}))
    (request,) = upstream.requests
    assert request.header("authorization") == f"Bearer {SCRIPTS_KEY}"
    assert CALLERS_KEY.encode() not in request.raw + request.body
    assert b"planted=" not in request.raw
    assert request.header("x-planted") is None
    assert request.path == "/v1/chat/completions"


async def test_fields_that_nobody_knows_arrive_as_they_were_sent_and_come_back_as_they_are(
    sdk: Sdk, standing: Standing
) -> None:
    number = 123456789012345678901234567890
    async with standing([read(), chat_reply("Yes.", new_field={"deep": [number, None]})]) as upstream:
        reply = await sdk(lambda client: chat(client, extra_body={"top_k": 4, "z": {"n": number, "text": TEXT}}))
    sent = json.loads(upstream.requests[0].body)
    assert (sent["top_k"], sent["z"]) == (4, {"n": number, "text": TEXT})
    assert reply.model_extra["new_field"] == {"deep": [number, None]}


async def test_text_is_whole_although_every_byte_came_by_itself(sdk: Sdk, standing: Standing) -> None:
    events = b"".join([*(delta(letter) for letter in TEXT), delta(finish="stop"), DONE])
    pieces = [chunk(events[at : at + 1]) for at in range(len(events))]
    async with standing([read(), send(STREAM_HEAD, *pieces, LAST_CHUNK)]):
        events_read = await sdk.events(chat_stream)
    assert "".join(each.choices[0].delta.content or "" for each in events_read) == TEXT


async def test_tool_calls_come_through_in_a_stream(sdk: Sdk, standing: Standing) -> None:
    def call(function: dict[str, str], **more: str) -> bytes:
        deltas = {"tool_calls": [{"index": 0, "function": function, **more}]}
        return event({"id": "1", "created": 1, "model": "m", "choices": [{"index": 0, "delta": deltas}]})

    opening = call({"name": "look", "arguments": ""}, id="call_1", type="function")
    rest = [call({"arguments": part}) for part in ('{"city": "', "Rome", '"}')]
    async with standing(whole_stream(opening, *rest, delta(finish="tool_calls"))) as upstream:
        tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
        events = await sdk.events(lambda client: chat_stream(client, tools=[tool], tool_choice="required"))
    calls = [one for each in events for one in each.choices[0].delta.tool_calls or ()]
    assert (calls[0].id, calls[0].function.name) == ("call_1", "look")
    assert json.loads("".join(one.function.arguments or "" for one in calls)) == {"city": "Rome"}
    assert events[-1].choices[0].finish_reason == "tool_calls"
    sent = json.loads(upstream.requests[0].body)
    assert (sent["tools"], sent["tool_choice"]) == ([tool], "required")


async def test_an_upstream_that_forgets_to_say_done_but_finished_is_forgiven(sdk: Sdk, standing: Standing) -> None:
    async with standing([*stream(delta("Yes."), delta(finish="stop")), send(LAST_CHUNK)]):
        events = await sdk.events(chat_stream)
    assert [each.choices[0].finish_reason for each in events] == [None, "stop"]


@pytest.mark.parametrize("ask", [chat, chat_stream])
async def test_a_client_side_timeout_closes_the_connection_to_a_silent_upstream(
    sdk: Sdk, standing: Standing, ask: Any
) -> None:
    unsaid = {"x-stainless-read-timeout": "60"}
    async with standing([read()]) as upstream, sdk.sibling(timeout=0.3, max_retries=0) as impatient:
        with pytest.raises(openai.APITimeoutError):
            await impatient(lambda client: ask(client, extra_headers=unsaid))
        await gone(upstream)
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("ask", [chat, chat_stream])
async def test_just_before_the_sdk_would_give_up_and_ask_again_it_is_told_not_to(
    sdk: Sdk, standing: Standing, ask: Any
) -> None:
    async with standing([read()]) as upstream, sdk.sibling(timeout=0.3, max_retries=2) as impatient:
        with pytest.raises(openai.InternalServerError) as caught:
            await impatient(ask)
        await gone(upstream)
        assert len(upstream.requests) == 1
    assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")


async def test_leaving_a_stream_closes_the_connection_to_its_upstream(sdk: Sdk, standing: Standing) -> None:
    async with standing(stream(delta("Hel"), delta("lo"))) as upstream:
        opened = await sdk(chat_stream)
        async for _ in sdk.each(opened):
            break
        assert upstream.open_connections == 1
        await sdk.close(opened)
        await gone(upstream)


async def test_an_event_is_handed_on_while_the_next_is_not_there_yet(sdk: Sdk, standing: Standing) -> None:
    more = asyncio.Event()
    script = [*stream(delta("first")), wait_for(more), send(chunk(delta("second", "stop")), chunk(DONE), LAST_CHUNK)]
    async with standing(script):
        started = time.monotonic()
        said: list[str] = []
        async for each in sdk.each(await sdk(chat_stream)):
            said.append(each.choices[0].delta.content)
            more.set()  # only now can the second one come
    assert said == ["first", "second"]
    assert time.monotonic() - started < 5


async def test_limits_that_the_upstream_tells_of_are_told_to_the_caller(sdk: Sdk, standing: Standing) -> None:
    headers = ("x-ratelimit-remaining-requests: 59", "openai-organization: org-secret", "set-cookie: __cf_bm=1")
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": []}
    async with standing([read(), json_reply(body, headers=headers)]):
        raw = await sdk(
            lambda client: client.chat.completions.with_raw_response.create(model="scripted", messages=told())
        )
    assert raw.headers["x-ratelimit-remaining-requests"] == "59"
    assert not {"openai-organization", "set-cookie"} & set(raw.headers)
