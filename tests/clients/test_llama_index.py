"""LlamaIndex's OpenAILike, which is how its users name a base URL of their own."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from llama_index.core.llms import ChatMessage  # type: ignore[import-not-found]
from llama_index.llms.openai_like import OpenAILike  # type: ignore[import-not-found]

from tests.sdk.stage import CALLERS_KEY, SENTENCE, Stage, Standing, delta, json_reply, saying, stream
from tests.support.processes import PATIENCE
from tests.support.upstream import close, forever, read

pytestmark = pytest.mark.clients

HELLO = [ChatMessage(role="user", content="Hello")]


@pytest.fixture
async def ways(anyio_backend: str, stage: Stage) -> AsyncIterator[dict[str, Any]]:
    """What every model here is made with; the connections are lent, as LlamaIndex closes none."""
    with openai.DefaultHttpxClient() as client:
        async with openai.DefaultAsyncHttpxClient() as async_client:
            yield {
                "api_base": f"{stage.gateway.url}/v1",
                "api_key": CALLERS_KEY,
                "http_client": client,
                "async_http_client": async_client,
                "max_retries": 0,
                "timeout": PATIENCE,
            }


@pytest.fixture
def tiny(ways: dict[str, Any]) -> Any:
    return OpenAILike(model="tiny", is_chat_model=True, additional_kwargs={"extra_body": saying()}, **ways)


@pytest.fixture
def scripted(ways: dict[str, Any]) -> Any:
    return OpenAILike(model="scripted", is_chat_model=True, **ways)


def test_chat_works_plain_and_streaming(tiny: Any) -> None:
    assert tiny.chat(HELLO).message.content == SENTENCE
    assert "".join(part.delta for part in tiny.stream_chat(HELLO)) == SENTENCE


async def test_chat_works_asynchronously(tiny: Any) -> None:
    assert (await tiny.achat(HELLO)).message.content == SENTENCE
    assert "".join([part.delta async for part in await tiny.astream_chat(HELLO)]) == SENTENCE


async def test_completions_work_plain_and_streaming(ways: dict[str, Any]) -> None:
    model = OpenAILike(model="tiny", is_chat_model=False, additional_kwargs={"extra_body": saying()}, **ways)
    assert model.complete("Hello").text == SENTENCE
    assert "".join(part.delta for part in model.stream_complete("Hello")) == SENTENCE
    assert (await model.acomplete("Hello")).text == SENTENCE


async def test_a_failure_is_told_once_and_in_its_class(scripted: Any, standing: Standing) -> None:
    async with standing([forever(read(), json_reply({}, "500 Oops"))]) as upstream:
        with pytest.raises(openai.InternalServerError) as caught:
            await scripted.achat(HELLO)
        assert len(upstream.requests) == int(caught.value.response.headers["x-gateway-attempts"])


async def test_a_stream_that_fails_raises_after_what_was_said(scripted: Any, standing: Standing) -> None:
    said: list[str] = []

    async def listen() -> None:
        async for part in await scripted.astream_chat(HELLO):
            said.append(part.delta)  # noqa: PERF401

    async with standing([*stream(delta("Hel"), delta("lo")), close()]):
        with pytest.raises(openai.APIError):
            await listen()
    assert "".join(said) == "Hello"


async def test_many_at_once_are_not_mixed_up(ways: dict[str, Any]) -> None:
    def model(number: int) -> Any:
        said = {"extra_body": saying(f"number {number}.")}
        return OpenAILike(model="tiny", is_chat_model=True, additional_kwargs=said, **ways)

    replies = await asyncio.gather(*(model(number).achat(HELLO) for number in range(8)))
    assert [reply.message.content for reply in replies] == [f"number {number}." for number in range(8)]
