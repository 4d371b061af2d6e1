"""A stream put together: the one reply that its chunks would have been, whatever engines put into them."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.wire.chat import as_stream
from gateway.wire.gather import Gathered
from gateway.wire.sse import Framer
from tests.wire.test_members import JSON


def take(*chunks: dict[str, Any] | bytes, choices: int = 1) -> Gathered:
    gathered = Gathered(choices)
    for chunk in chunks:
        assert gathered.take(chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()) is False
    return gathered


def piece(finish: str | None = None, index: int = 0, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def message(*chunks: dict[str, Any] | bytes) -> Any:
    (choice,) = json.loads(take(*chunks).reply())["choices"]
    return choice["message"]


def test_text_is_joined_and_reasoning_is_kept_beside_it() -> None:
    said = message(
        piece(role="assistant", content="", reasoning_content=None),
        piece(reasoning_content="I "),
        piece(content=None, reasoning_content="think."),
        piece(content="So"),
        piece(content=" be it.", reasoning_content=None, refusal=None),
    )
    assert said == {"role": "assistant", "content": "So be it.", "reasoning_content": "I think.", "refusal": None}


def test_calls_of_tools_are_put_together_by_their_index() -> None:
    said = message(
        piece(role="assistant", content=None, tool_calls=[call(0, "a", "sum", "")]),
        piece(tool_calls=[call(0, "", None, '{"x"'), call(1, "b", "mul", '{"y"')]),
        piece(tool_calls=[call(1, "b", "", ":2}"), call(0, "a", "sum", ":1}")]),
    )
    assert said["content"] is None
    assert said["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "sum", "arguments": '{"x":1}'}},
        {"id": "b", "type": "function", "function": {"name": "mul", "arguments": '{"y":2}'}},
    ]


def call(index: int | None, id_: str, name: str | None, arguments: str) -> dict[str, Any]:
    made = {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
    return made if index is None else {"index": index, **made}


def test_calls_of_tools_without_an_index_are_told_apart_by_their_ids() -> None:
    said = message(
        piece(tool_calls=[call(None, "a", "sum", '{"x"')]),
        piece(tool_calls=[call(None, "", None, ":1}")]),
        piece(tool_calls=[call(None, "b", "mul", "{}")]),
    )
    assert [(one["id"], one["function"]["arguments"]) for one in said["tool_calls"]] == [("a", '{"x":1}'), ("b", "{}")]


def test_a_call_of_a_function_and_sound_are_put_together_too() -> None:
    said = message(
        piece(function_call={"name": "f", "arguments": "{"}, audio={"id": "s", "data": "AA", "transcript": "h"}),
        piece(function_call={"arguments": "}"}, audio={"id": "s", "data": "BB", "transcript": "i", "expires_at": 7}),
    )
    assert said["function_call"] == {"name": "f", "arguments": "{}"}
    assert said["audio"] == {"id": "s", "data": "AABB", "transcript": "hi", "expires_at": 7}


def test_choices_are_kept_apart_and_are_in_order() -> None:
    gathered = take(
        piece("stop", 1, content="b"), piece(None, 0, content="a"), piece("length", 0, content="c"), choices=2
    )
    assert gathered.complete
    choices = json.loads(gathered.reply())["choices"]
    assert [(one["index"], one["message"]["content"], one["finish_reason"]) for one in choices] == [
        (0, "ac", "length"),
        (1, "b", "stop"),
    ]


def test_probabilities_come_after_a_null_and_are_joined() -> None:
    probabilities = (None, {"content": [1], "refusal": None}, {"content": [2], "refusal": None})
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {}, "logprobs": each}]} for each in probabilities
    ]
    (choice,) = json.loads(take(*chunks).reply())["choices"]
    assert choice["logprobs"] == {"content": [1, 2], "refusal": None}


def test_the_head_is_the_first_that_says_something_and_padding_is_left_out() -> None:
    gathered = take(
        {"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": [1]},
        {
            "id": "c",
            "object": "chat.completion.chunk",
            "created": 7,
            "model": "m",
            "obfuscation": "x",
            **piece(content="a"),
        },
        {"id": "c", "object": "chat.completion.chunk", "created": 8, "model": "m", **piece("stop"), "usage": None},
        {"id": "c", "choices": [], "usage": {"prompt_tokens": 1}, "timings": {"n": 1}},
        b"[DONE]",
    )
    reply = json.loads(gathered.reply())
    del reply["choices"]
    assert reply == {
        "id": "c",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "prompt_filter_results": [1],
        "usage": {"prompt_tokens": 1},
        "timings": {"n": 1},
    }


def test_usage_that_is_told_with_every_chunk_is_the_last_one() -> None:
    gathered = take(*({**piece(content="a"), "usage": {"completion_tokens": n}} for n in (1, 2)))
    assert json.loads(gathered.reply())["usage"] == {"completion_tokens": 2}


@pytest.mark.parametrize(
    ("chunks", "choices", "complete"),
    [
        ([], 1, False),
        ([b"[DONE]"], 1, False),
        ([piece(content="a")], 1, False),
        ([piece("stop")], 1, True),
        ([piece("stop")], 2, False),
        ([piece("stop"), piece("stop", 1)], 2, True),
        ([piece("stop"), piece(None, 1)], 1, False),
        ([piece(content="a"), b" [DONE] "], 1, True),
        ([piece("stop"), b"nonsense"], 1, False),
        ([piece("stop"), b"[]"], 1, False),
    ],
)
def test_a_reply_is_complete_when_the_upstream_has_said_so(
    chunks: list[dict[str, Any] | bytes], choices: int, complete: bool
) -> None:
    assert take(*chunks, choices=choices).complete is complete


@pytest.mark.parametrize(
    "data",
    [
        b'{"error":{"message":"no"}}',
        b'{"error":"no"}',
        b'{"object":"error","message":"no"}',
        b'{"code":"Throttling","message":"no","request_id":"r"}',
    ],
)
def test_an_error_is_told(data: bytes) -> None:
    assert Gathered().take(data) is True


def test_a_character_that_was_cut_is_replaced() -> None:
    cut = b'{"choices":[{"delta":{"content":"h\xe4"},"finish_reason":"stop"}]}'
    assert message(cut) == {"role": "assistant", "content": "h\ufffd"}


def test_what_is_nested_without_end_is_not_read() -> None:
    for depth in (300, 900, 100_000):
        gathered = take(piece("stop"), b'{"choices":[],"x":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}")
        assert gathered.invalid


def test_a_long_answer_takes_time_in_proportion_to_its_length() -> None:
    gathered = take(*[piece(content="x" * 1000)] * 2000, piece("stop"))
    assert len(json.loads(gathered.reply())["choices"][0]["message"]["content"]) == 2_000_000


KEYS = ["choices", "index", "delta", "message", "content", "role", "tool_calls", "function", "arguments", "logprobs"]
ODD = st.recursive(
    JSON,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*KEYS, "id", "text"]), inner, max_size=4)
    ),
    max_leaves=12,
)
CHOICES = st.dictionaries(st.sampled_from([*KEYS, "text", "finish_reason"]), ODD, max_size=4)
CHUNKS = st.fixed_dictionaries({"choices": st.lists(CHOICES | ODD, max_size=3) | ODD}) | ODD


@settings(max_examples=500, deadline=None)
@given(st.lists(CHUNKS.map(json.dumps).map(str.encode) | st.binary(max_size=20), max_size=5))
@example(
    [b'{"choices":[{"message":"x"}]}', b'{"choices":[{"delta":{"tool_calls":[{"function":[]},{"function":{}}]}}]}']
)
def test_whatever_comes_is_taken_and_a_reply_can_be_written(data: list[bytes]) -> None:
    gathered = Gathered()
    for each in data:
        gathered.take(each)
    assert gathered.complete in {True, False}
    assert isinstance(json.loads(gathered.reply()), dict)


def test_a_reply_made_a_stream_is_gathered_into_itself() -> None:
    tools = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    said = {"role": "assistant", "content": "hi", "reasoning_content": "hm", "tool_calls": tools}
    reply = {
        "id": "c",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": said, "finish_reason": "tool_calls", "logprobs": None}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }
    stream = b"".join(as_stream(json.dumps(reply).encode(), with_usage=True))
    gathered = take(*(data for _, data in Framer().feed(stream) if data))
    assert json.loads(gathered.reply()) == reply
