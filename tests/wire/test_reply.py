"""What is read of replies and events, whatever upstreams send, and what is taken out of them."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.call import Usage
from gateway.wire.chat import (
    as_stream,
    finished,
    has_content,
    read_chunk,
    read_usage,
    without_null_usage,
)
from gateway.wire.sse import Framer
from tests.wire.corpus import CAPTURED
from tests.wire.test_members import INDENTS, JSON

NAMES = st.sampled_from(["choices", "usage", "error", "id", "delta", "content", "usage ", '"usage"', "\\", "\u2028"])
VALUES = JSON | st.sampled_from(["usage", '"usage":null', ',"usage" : null,', {"usage": None}, [{"usage": None}]])
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=5)


def of_event(event: bytes) -> Any:
    ((_, data),) = Framer().feed(event)
    assert data is not None
    return json.loads(data)


# An event or a reply.


@pytest.mark.parametrize(
    ("data", "failed", "usage", "empty"),
    [
        (b'{"choices":[{"index":0}]}', False, False, False),
        (b'{"choices":[],"usage":{"prompt_tokens":1}}', False, True, True),
        (b'{"choices": [ ] ,"usage":null}', False, False, True),
        (b'{"choices":null}', False, False, True),
        (b"{}", False, False, True),
        (b'{"error":{"message":"no"}}', True, False, True),
        (b'{"error":"no"}', True, False, True),
        (b'{"\\u0065rror":"no"}', True, False, True),
        (b'{"choices":[1],"error":null}', False, False, False),
        (b'{"choices":[1],"error":{}}', False, False, False),
        (b'{"choices":[1],"error":""}', False, False, False),
        (b'{"choices":[1],"error":false}', False, False, False),
        (b'{"object":"error","message":"no","type":"BadRequestError","param":null,"code":400}', True, False, True),
        (b'{"object":"error","message":"no"}', True, False, True),
        (b'{"code":"InvalidParameter","message":"no","request_id":"r"}', True, False, True),
        (b'{"c\\u006fde":"InvalidParameter","message":"no"}', True, False, True),
        (b'{"code":"","message":"","request_id":"r"}', False, False, True),
        (b'{"code":null,"message":"no"}', False, False, True),
        (b'{"code":0,"message":"ok"}', False, False, True),
        (b'{"code":"x"}', False, False, True),
        (b'{"message":"x"}', False, False, True),
        (b'{"code":"x","message":"no","choices":[1]}', False, False, False),
        (b'{"code":200,"message":"success","data":[]}', False, False, True),
    ],
)
def test_a_chunk_tells_of_error_usage_and_choices(data: bytes, failed: bool, usage: bool, empty: bool) -> None:
    chunk = read_chunk(data)
    assert (chunk.failed, chunk.has_usage, chunk.empty) == (failed, usage, empty)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[DONE]",
        b"[]",
        b"1",
        b"null",
        b'"x"',
        b"{",
        b'{"a":1} x',
        b'{"a":NaN}',
        b'{"a":01}',
        b"<html>",
        b"\xff",
        b'{"a":"\n"}',
    ],
)
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        read_chunk(data)


@pytest.mark.parametrize("data", [b'{"a":' + b"[" * 100_000, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"])
def test_nesting_without_end_is_refused_like_anything_else_that_cannot_be_read(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        read_chunk(data)


def test_a_string_that_nobody_reads_need_not_be_utf_8() -> None:
    chunk = read_chunk(b'{"choices":[{"delta":{"content":"\xe4\xbd"}}],"usage":{"prompt_tokens":1}}')
    assert bytes(chunk.choices) == b'[{"delta":{"content":"\xe4\xbd"}}]'
    assert has_content(chunk.choices) is False
    assert finished(b'{"choices":[{"finish_reason":"\xe4"}]}') == set()


@settings(deadline=None)
@given(st.binary(max_size=40) | OBJECTS.map(json.dumps).map(str.encode) | JSON.map(json.dumps).map(str.encode))
@example(b"[" * 5000)
@example(b"\xff")
def test_weird_input_never_raises(data: bytes) -> None:
    assert has_content(data) in {True, False}
    assert isinstance(finished(data), set)
    usage = read_usage(data)
    assert usage is None or isinstance(usage, Usage)


# Usage.

ALL_COUNTS = (
    b'{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":8},'
    b'"completion_tokens_details":{"reasoning_tokens":3}}'
)


@pytest.mark.parametrize(
    ("raw", "usage"),
    [
        (b'{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}', Usage(9, 4)),
        (b'{"prompt_tokens":9,"total_tokens":9}', Usage(9)),
        (b'{"prompt_tokens":9,"completion_tokens":null}', Usage(9)),
        (ALL_COUNTS, Usage(9, 4, 8, 3)),
        (b'{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":10}}', Usage(9, 0, 9)),
        (b'{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":-1}}', Usage(9)),
        (b'{"prompt_tokens":9,"prompt_tokens_details":[],"completion_tokens_details":"x"}', Usage(9)),
        (b'{"prompt_tokens":-9,"completion_tokens":4}', None),
        (b'{"prompt_tokens":"9","completion_tokens":4}', None),
        (b'{"prompt_tokens":9.5}', None),
        (b'{"prompt_tokens":true}', None),
        (b'{"prompt_tokens":12345678901234567890123}', None),
        (b'{"prompt_tokens":1000000000}', None),
        (b"{}", None),
        (b"null", None),
        (b"", None),
        (b"[]", None),
        (b'"x"', None),
        (b'{"prompt_tokens":9,"x":"\xff"}', None),
    ],
)
def test_usage_is_believed_or_it_is_none(raw: bytes, usage: Usage | None) -> None:
    assert read_usage(raw) == usage
    assert read_usage(msgspec.Raw(raw)) == usage


# Content and finish.


@pytest.mark.parametrize(
    ("choices", "content"),
    [
        (b'[{"delta":{"role":"assistant"}}]', False),
        (b'[{"delta":{"role":"assistant","content":""}}]', False),
        (b'[{"delta":{"role":"assistant","content":null}}]', False),
        (b'[{"delta":{},"finish_reason":"stop"}]', False),
        (b'[{"delta":{"content":"a"}}]', True),
        (b'[{"delta":{"reasoning_content":"a"}}]', True),
        (b'[{"delta":{"reasoning":"a","content":null}}]', True),
        (b'[{"delta":{"tool_calls":[{"index":0}]}}]', True),
        (b'[{"delta":{"refusal":"no"}}]', True),
        (b'[{"text":"a"}]', True),
        (b'[{"text":""}]', False),
        (b'[null,1,"x",[],{"delta":null},{"delta":{"content":"a"}}]', True),
        (b"[]", False),
        (b"", False),
    ],
)
def test_content_is_what_was_generated(choices: bytes, content: bool) -> None:
    assert has_content(choices) is content


@pytest.mark.parametrize(
    ("data", "finish"),
    [
        (b'{"choices":[{"finish_reason":"stop"}]}', True),
        (b'{"choices":[{"finish_reason":null},{"finish_reason":"length"}]}', True),
        (b'{"choices":[null,{"finish_reason":"length"}]}', True),
        (b'{"choices":[{"finish_reason":null}]}', False),
        (b'{"choices":[{"finish_reason":""}]}', False),
        (b'{"choices":[]}', False),
        (b'{"finish_reason":"stop"}', False),
        (b"[DONE]", False),
    ],
)
def test_a_finish_is_found(data: bytes, finish: bool) -> None:
    assert bool(finished(data)) is finish


@pytest.mark.parametrize("name", sorted(set(CAPTURED) - {"triton"}))
def test_what_real_engines_sent_is_read(name: str) -> None:
    data = [data for _, data in Framer().feed(CAPTURED[name]) if data not in (None, b"[DONE]")]
    chunks = [read_chunk(each) for each in data]
    usages = [read_usage(chunk.usage) for chunk in chunks if chunk.has_usage]
    assert [(usage.input, usage.output) for usage in usages if usage is not None] == [(9, 4)]
    assert [has_content(chunk.choices) for chunk in chunks][:2] == [False, True]
    assert any(finished(each) for each in data[-3:])
    assert not any(chunk.failed for chunk in chunks)


# Usage that was not asked for.


@pytest.mark.parametrize(
    ("event", "left"),
    [
        (b'data: {"id":1,"usage":null}\n\n', b'data: {"id":1}\n\n'),
        (b'data: {"usage":null,"id":1}\n\n', b'data: {"id":1}\n\n'),
        (b'data: {"a":1,"usage":null,"id":1}\n\n', b'data: {"a":1,"id":1}\n\n'),
        (b'data: {"usage":null}\n\n', b"data: {}\n\n"),
        (b'data: { "a": 1, "usage" : null }\n\n', b'data: { "a": 1}\n\n'),
        (b'data: { "usage": null, "a": 1 }\n\n', b'data: {"a": 1 }\n\n'),
        (b'data:{"a":12345678901234567890123,"usage":null}\n\n', b'data:{"a":12345678901234567890123}\n\n'),
        (b'data: {"a":"\\u00e9","usage":null}\n\n', b'data: {"a":"\\u00e9"}\n\n'),
        (b'data: {"a":"\xe4","usage":null}\n\n', b'data: {"a":"\xe4"}\n\n'),
    ],
)
def test_a_null_usage_is_cut_out_and_the_rest_is_as_it_came(event: bytes, left: bytes) -> None:
    assert without_null_usage(event) == left


@pytest.mark.parametrize(
    ("event", "left"),
    [
        (b'data: {"a":{"usage":null},"usage":null}\n\n', {"a": {"usage": None}}),
        (b'data: {"usage":null,"a":{"usage":null}}\n\n', {"a": {"usage": None}}),
        (b'data: {"a":"usage","usage":null}\n\n', {"a": "usage"}),
        (b'data: {"a":"\\"usage\\":null","usage":null}\n\n', {"a": '"usage":null'}),
        (b'data: {"a":{"usage":null},"us\\u0061ge":null}\n\n', {"a": {"usage": None}}),
        (b'data: {"usage":1,"a":2,"usage":null}\n\n', {"a": 2}),
        (b'data: {"a":1,\ndata: "usage":null}\n\n', {"a": 1}),
        (b'data: {"a":\ndata: [1,\ndata: 2],"usage"\ndata: :null,"b":1}\n\n', {"a": [1, 2], "b": 1}),
        (b'data: {"a":1,\rdata: "usage":null}\n\n', {"a": 1}),
        (b'data: {"a":1,"usage":null}\r\n\r\n', {"a": 1}),
        (b'data: {"a":1,"usage":null}\r\r', {"a": 1}),
        (b': {"usage":null}\nid: 7\ndata: {"a":1,"usage":null}\n\n', {"a": 1}),
        (b'\xef\xbb\xbfdata: {"a":1,"usage":null}\r\n\r\n', {"a": 1}),
        (b'\ndata: {"a":1,"usage":null}\n\n', {"a": 1}),
    ],
)
def test_a_null_usage_goes_from_an_event_in_odd_writing_too(event: bytes, left: object) -> None:
    assert of_event(without_null_usage(event)) == left


@settings(max_examples=300, deadline=None)
@given(OBJECTS, st.booleans(), INDENTS, st.integers(0, 5))
def test_without_null_usage_an_event_means_the_same_but_for_it(
    members: dict[str, Any], escaped: bool, indent: int | str | None, at: int
) -> None:
    pairs = [(name, value) for name, value in members.items() if name != "usage"]
    chunk = dict([*pairs[:at], ("usage", None), *pairs[at:]])
    text = json.dumps(chunk, ensure_ascii=escaped, indent=indent).encode("utf-8", "surrogatepass")
    event = b"".join(b"data: " + line + b"\n" for line in text.splitlines()) + b"\n"
    assert of_event(without_null_usage(event)) == dict(pairs)


# A plain reply to who asked for a stream.

REPLY = (
    b'{\n "id" : 123456789012345678901234567890,"object":"chat.completion","x":1.10,"y":"\xff",\r\n'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"h\\u00e9",'
    b'"tool_calls":[{"id":"a","n":1.0},{"index":7,"id":"b"},null]},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":1}}'
)
DELTA = (
    b'{"role":"assistant","content":"h\\u00e9","tool_calls":[{"index":0,"id":"a","n":1.0},{"index":7,"id":"b"},null]}'
)
HEAD = b'{"id":123456789012345678901234567890,"object":"chat.completion.chunk","x":1.10,"y":"\xff","choices":['


def test_a_reply_becomes_events_and_what_is_not_renamed_stays_as_it_was_written() -> None:
    first = b"data: " + HEAD + b'{"index":0,"finish_reason":"stop","delta":' + DELTA + b"}]}\n\n"
    last = b"data: " + HEAD + b'],"usage":{"prompt_tokens":1}}\n\n'
    assert as_stream(REPLY, with_usage=False) == [first, b"data: [DONE]\n\n"]
    assert as_stream(REPLY, with_usage=True) == [first, last, b"data: [DONE]\n\n"]


def test_a_completion_becomes_events_as_it_is() -> None:
    body = b'{"object":"text_completion","choices":[{"text":"a"}],"usage":null}'
    event = b'data: {"object":"text_completion","choices":[{"text":"a"}]}\n\n'
    assert as_stream(body, with_usage=True) == [event, b"data: [DONE]\n\n"]


@settings(deadline=None)
@given(OBJECTS, st.booleans(), INDENTS)
def test_any_reply_becomes_events(members: dict[str, Any], with_usage: bool, indent: int | str | None) -> None:
    body = json.dumps(members, indent=indent).encode()
    *events, done = as_stream(body, with_usage=with_usage)
    assert done == b"data: [DONE]\n\n"
    assert all(isinstance(of_event(event), dict) for event in events)


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"choices":5}',
        b'{"choices":{"a":1}}',
        b'{"choices":[1,[],null,{"message":1},{"message":{"tool_calls":{}}}]}',
        b'{"\xff":1,"choices":[{"message":{"\xff":"\xfe"}}],"usage":1}',
        b'{"choices":[],"choices":[1]}',
        b'{"a":1e999,"choices":[{"message":{"content":"a"}}]}',
    ],
)
def test_what_was_read_can_be_made_events_of_however_odd_it_is(body: bytes) -> None:
    read_chunk(body)
    for with_usage in (True, False):
        events = as_stream(body, with_usage=with_usage)
        assert len(Framer().feed(b"".join(events))) == len(events)
        for event in events[:-1]:
            read_chunk(event[6:-2])
