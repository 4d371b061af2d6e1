"""A real vLLM that has no room, and one whose engine dies: what a service sees, and what the gateway makes of it.

The last tests kill `spare`, which nothing needs after them.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from tests.vllm.conftest import ROOM, Stage
from tests.vllm.server import KEY, NAME, Vllm
from tests.vllm.test_calls import LONG, Sdk, asked

pytestmark = [pytest.mark.vllm, pytest.mark.anyio]


class Crowd:
    """Callers who come to a server directly, and stay."""

    def __init__(self, server: Vllm, number: int) -> None:
        self._client = openai.AsyncOpenAI(base_url=server.url, api_key=KEY, timeout=60, max_retries=0)
        self._server = server
        self._number = number
        self._streams: list[Any] = []

    async def __aenter__(self) -> None:
        for _ in range(self._number):
            self._streams.append(stream := await self._client.chat.completions.create(**asked(stream=True, **LONG)))
            await anext(aiter(stream))

    async def __aexit__(self, *_: object) -> None:
        for stream in self._streams:
            await stream.close()
        await self._client.close()
        await asyncio.to_thread(self._server.wait_running, 0)


@pytest.fixture
async def full(stage: Stage) -> AsyncIterator[None]:
    """`first` has no room."""
    async with Crowd(stage.first, ROOM):
        yield


@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_without_room_is_told_plainly(sdk: Sdk, full: None, stream: bool) -> None:
    with pytest.raises(openai.InternalServerError) as refused:
        await sdk.chat.completions.create(**asked(stream=stream))
    assert (refused.value.status_code, refused.value.code) == (503, "upstream_overloaded")
    assert refused.value.response.headers["retry-after"]


async def test_a_server_without_room_is_no_reason_to_fail_where_there_is_another(
    sdk: Sdk, stage: Stage, full: None
) -> None:
    attempts = []
    for stream in (False, True, False, True):
        raw = await sdk.chat.completions.with_raw_response.create(**asked(model="turns", stream=stream))
        if stream:
            assert [chunk async for chunk in raw.parse()]
        attempts.append(raw.headers["x-gateway-attempts"])
    assert "2" in attempts
    where = {"upstream": "turns", "replica": replica(stage.first)}
    refused = stage.metric("gateway_upstream_attempts_total", **where, outcome="overloaded")
    assert refused == attempts.count("2")
    # it has too much to do, but nothing is wrong with it
    assert stage.metric("gateway_upstream_state", **where, state="ejected") == 0


async def test_a_server_that_has_room_again_is_asked_again(sdk: Sdk) -> None:
    assert (await sdk.chat.completions.create(**asked())).choices[0].message.content


@pytest.mark.parametrize("busy", ["first", "spare"])
async def test_calls_go_where_there_is_less_to_do_even_if_others_made_it(sdk: Sdk, stage: Stage, busy: str) -> None:
    servers = {"first": stage.first, "spare": stage.spare}
    names = {name: replica(server) for name, server in servers.items()}
    served = {"upstream": "shared", "outcome": "served"}
    (idle,) = set(names) - {busy}

    def counts() -> dict[str, float]:
        family = "gateway_upstream_attempts_total"
        return {name: stage.metric(family, replica=where, **served) or 0 for name, where in names.items()}

    async with Crowd(servers[busy], ROOM):
        for name, number in ((busy, ROOM), (idle, 0)):
            where = {"upstream": "shared", "replica": names[name]}
            await asyncio.to_thread(stage.wait_value, number, "gateway_upstream_engine_running", **where)
        before = counts()
        for _ in range(6):
            await sdk.chat.completions.create(**asked(model="shared"))
        after = counts()
    assert {name: after[name] - before[name] for name in names} == {busy: 0, idle: 6}


def replica(server: Vllm) -> str:
    """How the gateway calls it."""
    return server.root.removeprefix("http://")


# What ends `spare`.


async def test_an_engine_killed_within_a_stream_ends_it_with_an_error_and_is_tried_elsewhere(
    sdk: Sdk, stage: Stage
) -> None:
    body = asked(model="spare", stream=True, **LONG) | {"ignore_eos": True}
    del body["extra_body"]
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
        await asyncio.to_thread(stage.spare.wait_running, 2)
        stage.spare.kill_engine()
        got += b"".join([read async for read in reads])
    *events, last, end = got.split(b"\n\n")
    assert end == b""
    assert last.startswith(b"data: {")
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert error["code"] == "upstream_error"
    assert b"EngineCore" not in got
    assert b"[DONE]" not in got
    assert len(events) > 1
    record = stage.gateway.record(answer.headers["x-request-id"])
    assert (record["outcome"], record["end_reason"], record["status"]) == ("failed", "upstream_error", 200)
    replies = await asyncio.gather(*others)
    assert [reply.usage and reply.usage.completion_tokens for reply in replies] == [2000, 2000]
    assert {reply.model for reply in replies} == {NAME}


def test_a_server_that_died_is_out(stage: Stage) -> None:
    state, dead = "gateway_upstream_state", replica(stage.spare)
    stage.wait_value(1, state, upstream="spare", state="unhealthy")
    assert stage.metric(state, upstream="turns", replica=dead, state="ejected") == 1
    assert stage.metric(state, upstream="turns", replica=replica(stage.first), state="ejected") == 0
    assert stage.spare.gone() is not None


def test_what_a_dead_server_said_last_is_forgotten(stage: Stage) -> None:
    stage.wait_value(None, "gateway_upstream_engine_running", upstream="spare")


async def test_calls_after_that_are_served_at_once_by_the_other(sdk: Sdk) -> None:
    for _ in range(4):
        raw = await sdk.chat.completions.with_raw_response.create(**asked(model="turns"))
        assert raw.headers["x-gateway-attempts"] == "1"


@pytest.mark.parametrize("stream", [False, True])
async def test_where_there_is_no_other_a_dead_server_is_told_plainly(sdk: Sdk, stream: bool) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        await sdk.chat.completions.create(**asked(model="spare", stream=stream))
    assert (failed.value.status_code, failed.value.code) == (502, "upstream_unreachable")
