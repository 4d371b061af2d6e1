"""OpenAI's SDK for Node: another HTTP client, another reader of streams, other classes of errors."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.sdk.stage import (
    CALLERS_KEY,
    SENTENCE,
    Stage,
    Standing,
    delta,
    event,
    json_reply,
    saying,
    stream,
    told,
    whole_stream,
)
from tests.support.upstream import close, forever, read

pytestmark = pytest.mark.clients

FOLDER = Path(__file__).parent / "node"
CREATE = "chat.completions.create"


class Node:
    """Runs ask.mjs, one process for each question."""

    def __init__(self, url: str) -> None:
        self._options = {"baseURL": f"{url}/v1", "apiKey": CALLERS_KEY}

    @asynccontextmanager
    async def asked(
        self, method: str, body: Any = None, leave: int | None = None, **options: Any
    ) -> AsyncIterator[Any]:
        """The process that has been asked, which is not there any more afterwards."""
        question: dict[str, Any] = {"options": self._options | options, "method": method}
        question |= {} if body is None else {"body": body}
        question |= {} if leave is None else {"leave": leave}
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            "node", "ask.mjs", json.dumps(question), cwd=FOLDER, stdin=pipe, stdout=pipe
        )
        try:
            async with asyncio.timeout(20):
                yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def __call__(self, method: str, body: Any = None, **options: Any) -> Any:
        """What came of it."""
        async with self.asked(method, body, **options) as process:
            out, _ = await process.communicate()
        return json.loads(out)


@pytest.fixture
def node(stage: Stage) -> Node:
    return Node(stage.gateway.url)


def chat(model: str = "scripted", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": told(), **more}


def text(events: list[Any]) -> str:
    return "".join(each["choices"][0]["delta"].get("content") or "" for each in events)


async def test_chat_works_plain(node: Node) -> None:
    result = await node(CREATE, chat("tiny", **saying()))
    assert result["reply"]["choices"][0]["message"]["content"] == SENTENCE
    assert result["reply"]["usage"]["completion_tokens"] > 5


async def test_chat_works_streaming_without_usage_for_those_who_did_not_ask(node: Node) -> None:
    result = await node(CREATE, chat("tiny", stream=True, **saying()))
    assert result["error"] is None
    assert text(result["events"]) == SENTENCE
    assert not any("usage" in each for each in result["events"])


async def test_usage_comes_last_for_those_who_asked(node: Node) -> None:
    result = await node(CREATE, chat("tiny", stream=True, stream_options={"include_usage": True}, **saying()))
    *said, last = result["events"]
    assert text(said) == SENTENCE
    assert (last["choices"], last["usage"]["completion_tokens"] > 5) == ([], True)


async def test_completions_embeddings_and_models_work(node: Node) -> None:
    completion = await node("completions.create", {"model": "tiny", "prompt": "Once", **saying()})
    assert completion["reply"]["choices"][0]["text"] == SENTENCE
    embedding = await node("embeddings.create", {"model": "tiny", "input": "text"})
    assert len(embedding["reply"]["data"][0]["embedding"]) == 64
    assert (await node("models.retrieve", "org/alias"))["reply"]["id"] == "org/alias"
    listed = await node("models.list")
    assert [model["id"] for model in listed["reply"]["data"]] == ["tiny", "org/alias", "scripted"]


async def test_errors_are_of_the_classes_that_callers_catch(node: Node) -> None:
    unknown = (await node(CREATE, chat("nobody")))["error"]
    assert "NotFoundError" in unknown["kinds"]
    assert (unknown["status"], unknown["code"], unknown["param"]) == (404, "model_not_found", "model")
    stranger = (await node(CREATE, chat("tiny"), apiKey="sk-nobodys"))["error"]
    assert "AuthenticationError" in stranger["kinds"]
    refused = (await node(CREATE, chat("tiny", max_tokens="many")))["error"]
    assert "BadRequestError" in refused["kinds"]
    assert refused["status"] == 400


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_failure_is_not_multiplied(node: Node, standing: Standing, streaming: bool) -> None:
    async with standing([forever(read(), json_reply({}, "500 Oops"))]) as upstream:
        error = (await node(CREATE, chat(stream=streaming)))["error"]
        assert len(upstream.requests) == int(error["headers"]["x-gateway-attempts"])
    assert "InternalServerError" in error["kinds"]
    assert (error["status"], error["code"], error["headers"]["x-should-retry"]) == (502, "upstream_error", "false")


async def test_an_error_event_is_thrown_where_it_stands(node: Node, standing: Standing) -> None:
    failure = {"error": {"message": "secret detail", "type": "server_error", "param": None, "code": None}}
    async with standing(whole_stream(delta("Hel"), delta("lo"), event(failure))):
        result = await node(CREATE, chat(stream=True))
    assert text(result["events"]) == "Hello"
    assert "APIError" in result["error"]["kinds"]
    assert (result["error"]["status"], result["error"]["code"]) == (None, "upstream_error")
    assert "secret detail" not in json.dumps(result)


async def test_a_stream_that_is_cut_is_never_taken_for_a_whole_one(node: Node, standing: Standing) -> None:
    async with standing([*stream(delta("Hel"), delta("lo")), close()]):
        result = await node(CREATE, chat(stream=True))
    assert text(result["events"]) == "Hello"
    assert result["error"]["code"] in ("upstream_stream_interrupted", "upstream_stream_incomplete")


async def test_aborting_a_stream_closes_the_connection_to_its_upstream(node: Node, standing: Standing) -> None:
    asked = node.asked(CREATE, chat(stream=True), leave=1)
    async with standing(stream(delta("Hel"), delta("lo"))) as upstream, asked as process:
        said = json.loads(await process.stdout.readline())
        await upstream.wait_until(lambda: upstream.open_connections == 0)
        assert process.returncode is None  # it has left the stream, and not the world
    assert len(said["events"]) >= 1


async def test_a_client_side_timeout_is_told_as_one_and_closes_the_connection(node: Node, standing: Standing) -> None:
    async with standing([read()]) as upstream:
        error = (await node(CREATE, chat(), timeout=300, maxRetries=0))["error"]
        assert "APIConnectionTimeoutError" in error["kinds"]
        async with asyncio.timeout(5):
            await upstream.wait_until(lambda: upstream.open_connections == 0)
        assert len(upstream.requests) == 1
