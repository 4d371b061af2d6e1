"""What the gateway process has written while the SDK used it: one line a request, and nothing that anybody said."""

import json
from typing import Any

import openai
import pytest

from tests.sdk.stage import SECRETS, Sdk, Stage, Standing, chat_reply, delta, event, json_reply, saying, stream, told
from tests.support.upstream import close, forever, read

PROMPT = "planted-prompt-3Xk1"
ANSWER = "planted-answer-9Vn4"
DETAIL = "planted-detail-2Rb8"


async def named(sdk: Sdk, name: str, **asked: Any) -> Any:
    """Ask under a request id of our own, to the end of the stream if it is one."""
    messages = [{"role": "user", "content": PROMPT}]
    headers = {"x-request-id": name}
    reply = await sdk(lambda client: client.chat.completions.create(messages=messages, extra_headers=headers, **asked))
    return [each async for each in sdk.each(reply)] if asked.get("stream") else reply


async def test_every_request_is_one_line_of_json_and_no_secret_is_in_any(
    sdk: Sdk, standing: Standing, stage: Stage
) -> None:
    failure = {"error": {"message": DETAIL, "type": DETAIL, "param": DETAIL, "code": DETAIL}}
    ids = [f"line-{number}-{'async' if sdk.asynchronous else 'sync'}" for number in range(7)]

    await named(sdk, ids[0], model="tiny", extra_body=saying(ANSWER))
    await named(sdk, ids[1], model="tiny", stream=True, extra_body=saying(ANSWER))
    async with standing([read(), chat_reply(ANSWER)]):
        await named(sdk, ids[2], model="scripted")
    async with standing([forever(read(), json_reply(failure, "400 Bad Request"))]):
        with pytest.raises(openai.BadRequestError, match=DETAIL):
            await named(sdk, ids[3], model="scripted")
    async with standing([*stream(delta(ANSWER), event(failure)), close()]):
        with pytest.raises(openai.APIError):
            await named(sdk, ids[4], model="scripted", stream=True)
    with pytest.raises(openai.NotFoundError):
        await named(sdk, ids[5], model=PROMPT)
    async with standing([forever(read(), json_reply(failure, "500 Oops"))]):
        with pytest.raises(openai.InternalServerError):
            await named(sdk, ids[6], model="scripted")

    records = [stage.gateway.record(name) for name in ids]
    assert [record["status"] for record in records] == [200, 200, 200, 400, 200, 404, 502]
    assert [record["stream"] for record in records] == [False, True, False, False, True, False, False]
    assert [record["prompt_chars"] for record in records] == [len(PROMPT)] * 7
    assert [record["key"] for record in records] == ["tests"] * 7
    written = [record["request_id"] for record in stage.gateway.records()]
    assert [written.count(name) for name in ids] == [1] * 7
    everything = "\n".join([*stage.gateway.out, *stage.gateway.err])
    assert [secret for secret in (PROMPT, ANSWER, DETAIL, *SECRETS) if secret in everything] == []


async def test_a_record_holds_everything_that_ops_ask_about(sdk: Sdk, stage: Stage) -> None:
    raw = await sdk(
        lambda client: client.chat.completions.with_raw_response.create(
            model="org/alias", messages=told(), stream=True, extra_body=saying()
        )
    )
    events = [each async for each in sdk.each(raw.parse())]
    record = stage.gateway.record(raw.headers["x-request-id"])
    assert {
        name: record[name]
        for name in ("level", "kind", "model", "upstream", "upstream_model", "attempts", "outcome", "end_reason")
    } == {
        "level": "info",
        "kind": "chat",
        "model": "org/alias",
        "upstream": "llama",
        "upstream_model": "tiny",
        "attempts": 1,
        "outcome": "served",
        "end_reason": "done",
    }
    assert 0 < record["ttft_ms"] < record["duration_ms"]
    assert 0 <= record["overhead_ms"] < record["duration_ms"]
    assert 0 < record["upstream_ms"] < record["duration_ms"]
    assert 5 < record["output_tokens"] < len(events) * 4


def test_nothing_but_json_is_ever_written_and_nothing_to_stderr(stage: Stage) -> None:
    for line in stage.gateway.out:
        assert {"timestamp", "level", "event"} <= set(json.loads(line))
    assert list(stage.gateway.err) == []
    # one of the scripts has refused the gateway's key, and nothing went wrong in the gateway itself
    errors = [said["event"] for said in map(json.loads, stage.gateway.out) if said["level"] == "error"]
    assert set(errors) <= {"key_refused"}
