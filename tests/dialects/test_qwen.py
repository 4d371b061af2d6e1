"""Qwen's dialect: which calls are streamed that were not to be, and how a model is told whether to think."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.call import Kind
from gateway.dialects import DIALECTS
from gateway.outcome import Refusal
from gateway.wire.chat import read_call

QWEN = DIALECTS["qwen"]()


def sent(model: str, kind: Kind = "chat", **members: Any) -> dict[str, Any]:
    """What of a body is changed: what is new or other, and None for what is gone."""
    body = {"model": model, "messages": [], **members}
    done: dict[str, Any] = json.loads(QWEN.encode(read_call(kind, json.dumps(body).encode()), model))
    return {name: done.get(name) for name in [*done, *body] if name not in body or done.get(name) != body[name]}


OFF, ON = {"enable_thinking": False}, {"enable_thinking": True}
GATHERED = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    "model",
    ["qwen3-32b", "qwen3-235b-a22b", "qwen3-0.6b", "qwen3-1.7b", "Qwen3-30B-A3B", "qwen3-8b-ft-202509"],
)
def test_an_open_model_is_told_not_to_think_where_a_plain_reply_is_wanted(model: str) -> None:
    assert sent(model) == OFF
    assert sent(model, stream=False) == OFF
    assert sent(model, enable_thinking=None) == OFF
    assert sent(model, enable_thinking=False) == {}
    assert sent(model, stream=True, stream_options={"include_usage": True}) == {}


@pytest.mark.parametrize(
    "model",
    [
        "qwen-plus",
        "qwen-max-latest",
        "qwen3-max",
        "qwen3-coder-480b-a35b-instruct",
        "qwen3-30b-a3b-instruct-2507",
        "qwen3-235b-a22b-thinking-2507",
        "qwen2.5-72b-instruct",
        "deepseek-v3",
    ],
)
def test_other_models_are_told_nothing(model: str) -> None:
    assert sent(model) == {}
    assert sent(model, enable_thinking=True) == {}


def test_a_caller_who_wants_an_open_model_to_think_gets_its_stream_gathered() -> None:
    assert sent("qwen3-32b", enable_thinking=True) == GATHERED
    assert sent("qwen3-32b", chat_template_kwargs=ON) == {**GATHERED, **ON, "chat_template_kwargs": None}


@pytest.mark.parametrize("model", ["qwq-plus", "QwQ-32B", "qvq-max", "qwen-omni-turbo", "qwen3-omni-flash"])
def test_a_model_that_can_only_stream_is_asked_for_a_stream(model: str) -> None:
    for stream in ({}, {"stream": False}, {"stream": None}):
        call = read_call("chat", json.dumps({"model": model, "messages": [], **stream}).encode())
        assert QWEN.streams(call, model)
        assert sent(model, **stream) == GATHERED
    assert sent(model, kind="embeddings") == {}


def test_the_caller_decides_for_all_others() -> None:
    for stream in (True, False):
        call = read_call("chat", json.dumps({"model": "qwen-plus", "stream": stream}).encode())
        assert QWEN.streams(call, "qwen-plus") is stream


def test_it_is_the_upstreams_name_of_the_model_that_counts() -> None:
    call = read_call("chat", b'{"model":"alias","messages":[]}')
    assert QWEN.encode(call, "qwen3-32b") == b'{"enable_thinking":false,"model":"qwen3-32b","messages":[]}'
    call = read_call("chat", b'{"model":"qwen3-32b","messages":[]}')
    assert QWEN.encode(call, "qwen-plus") == b'{"model":"qwen-plus","messages":[]}'


@pytest.mark.parametrize(
    ("members", "changes"),
    [
        ({"chat_template_kwargs": ON}, {**ON, "chat_template_kwargs": None}),
        ({"chat_template_kwargs": {**OFF, "x": 1}}, {**OFF, "chat_template_kwargs": {"x": 1}}),
        ({"chat_template_kwargs": {"x": 1}}, {}),
        ({"chat_template_kwargs": {"enable_thinking": None}}, {}),
        ({"chat_template_kwargs": "odd"}, {}),
        ({"chat_template_kwargs": None}, {}),
        ({**OFF, "chat_template_kwargs": ON}, {"chat_template_kwargs": None}),
        ({"enable_thinking": None, "chat_template_kwargs": ON}, {**ON, "chat_template_kwargs": None}),
        ({"metadata": {"chat_template_kwargs": ON}, "messages": [{"content": '"enable_thinking": true'}]}, {}),
    ],
)
def test_what_a_caller_says_in_the_engines_way_is_said_in_qwens(
    members: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert sent("qwen-plus", **members) == changes


def test_a_switch_in_disguise_or_given_twice_is_found() -> None:
    call = read_call("chat", b'{"model":"qwen3-8b","enable\\u005fthinking" : true, "x":1.10}')
    assert QWEN.streams(call, "qwen3-8b")
    call = read_call("chat", b'{"model":"qwen3-8b","enable_thinking":true,"x":1.10,"enable_thinking":null}')
    assert not QWEN.streams(call, "qwen3-8b")
    assert QWEN.encode(call, "qwen3-8b") == b'{"model":"qwen3-8b","x":1.10,"enable_thinking":false}'
    call = read_call(
        "chat", b'{"model":"qwen3-8b","chat_template_kwargs":{"enable_thinking":true,"enable_thinking":false}}'
    )
    assert QWEN.encode(call, "qwen3-8b") == b'{"enable_thinking":false,"model":"qwen3-8b"}'


def test_what_is_untouched_stays_byte_for_byte() -> None:
    body = b'{ "x":123456789012345678901234567890 , "model": "qwen3-8b","y":"\\u00e9" ,"messages":[ ]\n}'
    call = read_call("chat", body)
    assert QWEN.encode(call, "qwen3-8b") == body.replace(b"{", b'{"enable_thinking":false,', 1)
    call = read_call("chat", body.replace(b"qwen3-8b", b"qwen-max"))
    assert QWEN.encode(call, "qwen-max") is call.body


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("Throttling", 429),
        ("Throttling.Something.New", 429),
        ("limit_burst_rate", 429),
        ("Arrearage", 402),
        ("AccessDenied.Unpurchased", 402),
        ("AccessDenied", 403),
        ("access_denied", 403),
        ("InternalError.Algo", None),
        ("InvalidParameter.NotSupportEnableThinking", 400),
        ("invalid_parameter_error", 400),
        ("DataInspectionFailed", 400),
        ("data_inspection_failed", 400),
        ("InvalidApiKey", 401),
        ("ModelNotFound", 404),
        ("model_not_found", 404),
        ("RequestTimeOut", 504),
        ("ModelServingError", 529),
        ("429", 429),
        ("", None),
        (".", None),
        ("Unheard", None),
    ],
)
def test_a_code_under_status_200_means_the_status_that_it_should_have_had(code: str, status: int | None) -> None:
    for body in ({"code": code, "message": "m"}, {"error": {"code": code, "message": "m"}}):
        assert QWEN.refusal(200, json.dumps(body).encode()).status == status


@pytest.mark.parametrize("status", [400, 403, 429, 500])
def test_an_account_that_is_dry_is_one_whatever_its_status(status: int) -> None:
    for code in ("CommodityNotPurchased", "PrepaidBillOverdue", "AllocationQuota.FreeTierOnly"):
        assert QWEN.refusal(status, json.dumps({"code": code, "message": "m"}).encode()).status == 402


def test_what_openai_calls_a_dry_account_is_a_throttle_here() -> None:
    body = b'{"error":{"message":"m","type":"insufficient_quota","code":"insufficient_quota","param":null}}'
    assert QWEN.refusal(429, body) == Refusal("m", "insufficient_quota", None, "insufficient_quota")
    assert DIALECTS["openai"]().refusal(429, body).status == 402


@settings(deadline=None)
@given(st.binary(max_size=40) | st.text().map(lambda code: json.dumps({"code": code, "message": "m"}).encode()))
def test_any_refusal_is_understood_or_left(body: bytes) -> None:
    for status in (200, 429):
        assert isinstance(QWEN.refusal(status, body), Refusal)
