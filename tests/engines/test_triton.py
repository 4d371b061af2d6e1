"""A real Triton behind a real gateway, over HTTP and over gRPC: what a service sees of it, and what the model sees."""

import asyncio
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.engines.conftest import TEMPLATE
from tests.engines.triton import Triton
from tests.support.processes import PATIENCE, GatewayProcess

pytestmark = [pytest.mark.engines, pytest.mark.anyio]

Sdk = openai.AsyncOpenAI


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def written(text: str) -> str:
    """What the model reads for that, and so what it says: by the template in tests/real/tiny-qwen2."""
    return f"<|im_start|>user{text}<|im_end|><|im_start|>assistant"


@pytest.mark.parametrize("model", ["llm", "trt", "once", "vllm"])
async def test_a_plain_call_gets_one_reply(sdk: Sdk, way: str, model: str) -> None:
    reply = await sdk.chat.completions.create(model=f"{model}-{way}", messages=said("One two three."))
    (choice,) = reply.choices
    assert reply.object == "chat.completion"
    assert reply.model == model
    assert reply.id.startswith("chatcmpl-")
    assert reply.created > 1_700_000_000
    assert choice.message.role == "assistant"
    assert choice.message.content == written("One two three.")
    assert choice.finish_reason == "stop"


@pytest.mark.parametrize("model", ["llm", "trt", "vllm", "once"])
async def test_a_stream_is_a_role_then_pieces_then_why_it_ended_then_usage(sdk: Sdk, way: str, model: str) -> None:
    stream = await sdk.chat.completions.create(
        model=f"{model}-{way}",
        messages=said("One two three four."),
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert (deltas[0].delta.role, deltas[0].delta.content) == ("assistant", "")
    assert "".join(delta.delta.content or "" for delta in deltas) == written("One two three four.")
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["stop"]
    assert len(deltas) == (3 if model == "once" else 6)
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert (chunks[-1].usage is None) == (model == "once")


async def test_what_the_model_does_not_count_its_tokenizer_does(sdk: Sdk, way: str) -> None:
    reply = await sdk.chat.completions.create(model=f"llm-{way}", messages=said("One two three."))
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == reply.usage.completion_tokens > 5  # it says what it has read
    assert reply.usage.total_tokens == 2 * reply.usage.prompt_tokens


async def test_what_the_model_counts_is_believed(sdk: Sdk, way: str) -> None:
    reply = await sdk.chat.completions.create(model=f"vllm-{way}", messages=said("One two three."))
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (3, 3)  # words, to this model


async def test_what_nobody_counts_is_estimated_and_marked(sdk: Sdk, gateway: GatewayProcess, way: str) -> None:
    reply = await sdk.chat.completions.with_raw_response.create(model=f"once-{way}", messages=said("One two three."))
    assert "usage" not in reply.http_response.json()
    record = gateway.record(reply.headers["x-request-id"])
    assert record["usage_estimated"] is True
    assert record["input_tokens"] > 0


@pytest.mark.parametrize("model", ["llm", "trt", "vllm"])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_cut_at_its_limit_says_so(sdk: Sdk, way: str, model: str, stream: bool) -> None:
    asked: dict[str, Any] = {"model": f"{model}-{way}", "messages": said("One two three."), "max_completion_tokens": 2}
    if stream:
        chunks = [chunk async for chunk in await sdk.chat.completions.create(**asked, stream=True)]
        assert chunks[-1].choices[0].finish_reason == "length"
    else:
        assert (await sdk.chat.completions.create(**asked)).choices[0].finish_reason == "length"


async def test_parameters_reach_the_tensors_of_a_python_model(sdk: Sdk, triton: Triton, way: str) -> None:
    since = len(triton.out)
    await sdk.chat.completions.create(
        model=f"llm-{way}", messages=said("One."), max_tokens=7, temperature=0, top_p=0.5, stop=["a", "b"], seed=None
    )
    assert triton.asked(since) == {
        "text_input": written("One."),
        "stream": True,
        "max_tokens": 7,
        "temperature": 0.0,
        "top_p": 0.5,
        "stop_words": ["a", "b"],
    }


async def test_parameters_reach_the_vllm_backend_as_one(sdk: Sdk, triton: Triton, way: str) -> None:
    since = len(triton.out)
    await sdk.chat.completions.create(
        model=f"vllm-{way}",
        messages=said("One."),
        temperature=1,
        stop="x",
        seed=7,
        presence_penalty=0.5,
        extra_body={"top_k": 4, "min_p": 0.1},
    )
    asked = triton.asked(since)
    assert {name: asked.pop(name) for name in ("exclude_input_in_output", "return_finish_reason", "stream")} == {
        "exclude_input_in_output": True,
        "return_finish_reason": True,
        "stream": True,
    }
    assert asked == {
        "text_input": written("One."),
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
        "max_tokens": 1024,
        "temperature": 1.0,
        "stop": ["x"],
        "seed": 7,
        "presence_penalty": 0.5,
        "top_k": 4,
        "min_p": 0.1,
    }


async def test_parameters_reach_the_tensors_of_tensorrt_llm(sdk: Sdk, triton: Triton, way: str) -> None:
    since = len(triton.out)
    await sdk.chat.completions.create(
        model=f"trt-{way}",
        messages=said("One."),
        seed=2**40,
        stop=["x", "y"],
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        extra_body={"top_k": 4, "repetition_penalty": 1.25, "min_tokens": 1},
    )
    assert triton.asked(since) == {
        "text_input": written("One."),
        "stream": True,
        "exclude_input_in_output": True,
        "max_tokens": 1024,
        "seed": 2**40,
        "stop_words": ["x", "y"],
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "top_k": 4,
        "repetition_penalty": 1.25,
        "min_tokens": 1,
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_a_completions_prompt_is_the_models_input(sdk: Sdk, way: str, stream: bool) -> None:
    asked: dict[str, Any] = {"model": f"llm-{way}", "prompt": "One two 東京 🎉", "stream": stream}
    reply = await sdk.completions.create(**asked)
    replies = [chunk async for chunk in reply] if stream else [reply]
    choices = [one.choices[0] for one in replies if one.choices]
    assert {one.object for one in replies} == {"text_completion"}
    assert "".join(choice.text for choice in choices) == "One two 東京 🎉"
    assert choices[-1].finish_reason == "stop"


async def test_without_a_template_there_are_completions_and_no_chat(sdk: Sdk) -> None:
    assert (await sdk.completions.create(model="bare", prompt="One")).choices[0].text == "One"
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.chat.completions.create(model="bare", messages=said("One."))
    assert refused.value.code == "unsupported_endpoint"


async def test_embeddings_are_refused(sdk: Sdk, way: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.embeddings.create(model=f"llm-{way}", input="One.")
    assert refused.value.code == "unsupported_endpoint"


IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tools"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"seed": 7}, "seed"),
        ({"extra_body": {"guided_regex": "a"}}, "guided_regex"),
        ({"messages": IMAGE}, "messages[0].content[0]"),
    ],
)
async def test_what_can_not_be_honoured_is_refused_by_name(
    sdk: Sdk, triton: Triton, way: str, asked: dict[str, Any], param: str
) -> None:
    since = len(triton.out)
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.chat.completions.create(**{"model": f"llm-{way}", "messages": said("One."), **asked})
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", param)
    assert not any("ASKED" in line for line in list(triton.out)[since:])


# What goes wrong.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["llm", "trt", "vllm"])
async def test_an_error_before_the_first_word_is_a_status(sdk: Sdk, way: str, model: str, stream: bool) -> None:
    asked: dict[str, Any] = {"model": f"{model}-{way}", "messages": said("FAIL FIRST"), "stream": stream}
    with pytest.raises(openai.InternalServerError) as failed:
        await sdk.chat.completions.create(**asked)
    assert (failed.value.status_code, failed.value.code) == (502, "upstream_error")
    assert "failed before" not in failed.value.message


async def test_an_error_after_words_is_told_within_the_stream(sdk: Sdk, way: str) -> None:
    stream = await sdk.chat.completions.create(model=f"llm-{way}", messages=said("FAIL LATER a b c"), stream=True)
    events = aiter(stream)
    pieces = [(await anext(events)).choices[0].delta.content or "" for _ in range(3)]
    with pytest.raises(openai.APIError) as failed:
        await anext(events)
    assert "".join(pieces) == written("FAIL LATER a b c").partition(" a")[0]
    assert failed.value.code == "upstream_error"


async def test_an_error_after_words_of_a_plain_call_is_a_status(sdk: Sdk, way: str) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        await sdk.chat.completions.create(model=f"llm-{way}", messages=said("FAIL LATER a b c"))
    assert (failed.value.status_code, failed.value.code) == (502, "upstream_error")


async def test_a_prompt_that_is_too_long_is_the_callers(sdk: Sdk, way: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.chat.completions.create(model=f"llm-{way}", messages=said("TOO LONG"))
    assert refused.value.code == "context_length_exceeded"


async def test_a_model_that_is_not_there_is_not_found(sdk: Sdk, way: str) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await sdk.chat.completions.create(model=f"nope-{way}", messages=said("One."))
    assert refused.value.code == "model_not_found"


async def test_a_model_that_is_not_loaded_is_unavailable_and_its_server_unwell(
    sdk: Sdk, triton: Triton, gateway: GatewayProcess, way: str
) -> None:
    since = len(gateway.out)
    triton.unload("once")
    with pytest.raises(openai.InternalServerError) as failed:
        await sdk.chat.completions.create(model=f"once-{way}", messages=said("One."))
    assert (failed.value.status_code, failed.value.code) == (503, "upstream_unavailable")
    _wait_for("replica_unhealthy", gateway, since)
    triton.load("once")
    _wait_for("replica_healthy", gateway, since)
    assert (await sdk.chat.completions.create(model=f"once-{way}", messages=said("One."))).choices


def _holding(mark: str) -> Callable[[str], bool]:
    return lambda line: mark in line


def _wait_for(event: str, gateway: GatewayProcess, since: int) -> None:
    """Both ways to the server have been found in this state."""
    for name in ("http", "grpc"):
        mark = f'"event":"{event}","upstream":"{name}"'
        gateway.out.wait(_holding(mark), since=since)


async def test_a_model_whose_process_has_died_is_unavailable(sdk: Sdk, triton: Triton, way: str) -> None:
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):  # there will never be an answer
                await sdk.completions.create(model=f"vllm-{way}", prompt="CRASH")
        with pytest.raises(openai.InternalServerError) as failed:
            await sdk.completions.create(model=f"vllm-{way}", prompt="One.")
        assert (failed.value.status_code, failed.value.code) == (503, "upstream_unavailable")
    finally:
        triton.unload("vllm")
        triton.load("vllm")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_replica_that_is_gone_costs_a_second_attempt(sdk: Sdk, way: str, stream: bool) -> None:
    attempts = set()
    for _ in range(6):
        reply = await sdk.completions.with_raw_response.create(model=f"half-{way}", prompt="One", stream=stream)
        attempts.add(reply.headers["x-gateway-attempts"])
        await reply.http_response.aclose()
    assert attempts <= {"1", "2"}


async def test_a_caller_who_leaves_a_stream_ends_the_inference(sdk: Sdk, triton: Triton, way: str) -> None:
    since = len(triton.out)
    stream = await sdk.completions.create(model=f"llm-{way}", prompt="ENDLESS", max_tokens=100_000, stream=True)
    await anext(aiter(stream))
    await stream.close()
    triton.wait_cancelled(since)


async def test_a_caller_who_leaves_a_plain_call_ends_the_inference(sdk: Sdk, triton: Triton, way: str) -> None:
    since = len(triton.out)
    asking = asyncio.create_task(sdk.completions.create(model=f"llm-{way}", prompt="ENDLESS", max_tokens=100_000))
    await asyncio.to_thread(triton.asked, since)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    triton.wait_cancelled(since)


async def test_its_own_metrics_are_told_in_ours(sdk: Sdk, gateway: GatewayProcess, way: str) -> None:
    await sdk.completions.create(model=f"llm-{way}", prompt="One")
    deadline = time.monotonic() + PATIENCE
    wanted = [f"gateway_upstream_engine_{name}{{" for name in ("waiting", "batch_size")]
    found: list[str] = []
    while len(found) < len(wanted):
        assert time.monotonic() < deadline, found
        page = await asyncio.to_thread(_page, f"{gateway.admin_url}/metrics")
        found = [line for line in page.splitlines() if line.startswith(tuple(wanted)) and f'upstream="{way}"' in line]
    values = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in found}
    assert values["gateway_upstream_engine_waiting"] == 0
    assert values["gateway_upstream_engine_batch_size"] == 1  # these models take one request at a time


def _page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        page: bytes = answer.read()
    return page.decode()


def test_the_model_that_is_used_here_has_all_that_a_folder_may_have() -> None:
    assert {path.name for path in TEMPLATE.iterdir()} == {
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    }
