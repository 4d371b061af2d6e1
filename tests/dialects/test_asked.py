"""What a call asks for, taken apart: what is handed over, and what is refused by its name."""

import json
from typing import Any

import pytest

from gateway.call import Kind
from gateway.dialects.asked import SAMPLING, Asked, read
from gateway.errors import CallerError
from gateway.wire.chat import read_call

SAID = [{"role": "user", "content": "Hi."}]


def asked(kind: Kind = "chat", taken: frozenset[str] = SAMPLING, **members: Any) -> Asked:
    prompt = {"messages": SAID} if kind == "chat" else {"prompt": "Hi."}
    call = read_call(kind, json.dumps({"model": "m", **prompt, **members}).encode())
    return read(call, taken, frozenset(("enable_thinking", "reasoning_effort")))


def refusal(kind: Kind = "chat", **members: Any) -> CallerError:
    with pytest.raises(CallerError) as refused:
        asked(kind, **members)
    return refused.value


@pytest.mark.parametrize(
    "members",
    [
        {"n": 1, "tools": [], "tool_choice": "auto", "logprobs": False, "response_format": {"type": "text"}},
        {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "flex", "stream": True},
        {"stop": [], "functions": []},
        {"seed": None, "tools": None, "stop": None, "whatever": None},
    ],
)
def test_what_changes_nothing_may_stand_there(members: dict[str, Any]) -> None:
    assert asked(**members).sampling == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("functions", [{"name": "f"}]),
        ("tool_choice", "required"),
        ("n", 2),
        ("best_of", 2),
        ("logprobs", True),
        ("logprobs", 3),
        ("logprobs", 0),  # of completions: those of what was said
        ("n", True),
        ("top_logprobs", 2),
        ("logit_bias", {"1": 1}),
        ("response_format", {"type": "json_schema"}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "a"}),
        ("prediction", {"type": "content"}),
        ("web_search_options", {}),
        ("whatever", 1),
        ("chat_template_kwargs", {"unknown": 1}),
    ],
)
def test_what_can_not_be_honoured_is_refused_by_its_name(name: str, value: Any) -> None:
    refused = refusal(**{name: value})
    assert (refused.status, refused.code, refused.param) == (400, "unsupported_parameter", name)
    assert name in refused.message


def test_a_parameter_that_no_tensor_takes_is_refused_unless_it_asks_for_nothing() -> None:
    assert asked(taken=frozenset(), presence_penalty=0, frequency_penalty=0.0, stop=[]).sampling == {}
    with pytest.raises(CallerError, match="seed"):
        asked(taken=frozenset(), seed=1)


def test_a_name_that_is_no_name_is_not_repeated() -> None:
    named: dict[str, Any] = {"<script>" * 50: 1}
    refused = refusal(**named)
    assert "script" not in refused.message
    assert len(refused.param or "") == 64


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 2**31),
        ("max_completion_tokens", 1.5),
        ("max_tokens", True),
        ("temperature", 2.1),
        ("temperature", "hot"),
        ("temperature", -0.1),
        ("top_p", 0),
        ("seed", -1),
        ("seed", 2**63),
        ("presence_penalty", 3),
        ("stop", [1]),
        ("stop", ""),
        ("stop", {"a": 1}),
        ("chat_template_kwargs", 1),
    ],
)
def test_a_value_that_makes_no_sense_is_the_callers_mistake(name: str, value: Any) -> None:
    refused = refusal(**{name: value})
    assert (refused.code, refused.param) == ("invalid_value", name)


def test_messages_are_texts_with_roles() -> None:
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "name": "Ada", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ]
    assert asked(messages=messages).messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "name": "Ada", "content": "a\nb"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": "No."},
    ]


@pytest.mark.parametrize(
    ("message", "param", "code"),
    [
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content[0]", "unsupported_parameter"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages[0].content[0]", "unsupported_parameter"),
        ({"role": "tool", "content": "x", "tool_call_id": "1"}, "messages[0].role", "unsupported_parameter"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[0].tool_calls", "unsupported_parameter"),
        ({"content": "x"}, "messages[0]", "invalid_value"),
        ("x", "messages[0]", "invalid_value"),
        ({"role": "user", "content": 1}, "messages[0].content", "invalid_value"),
        ({"role": "user", "content": ["x"]}, "messages[0].content[0]", "invalid_value"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text", "invalid_value"),
    ],
)
def test_a_message_that_is_more_or_less_than_that_is_refused(message: Any, param: str, code: str) -> None:
    refused = refusal(messages=[message])
    assert (refused.param, refused.code) == (param, code)


@pytest.mark.parametrize("messages", [[], "x", None, {}])
def test_a_conversation_has_messages(messages: Any) -> None:
    assert refusal(messages=messages).param == "messages"


@pytest.mark.parametrize("prompt", [["a", "b"], [1, 2], [[1, 2]], None, 1])
def test_a_prompt_is_one_text(prompt: Any) -> None:
    assert refusal("completions", prompt=prompt).param == "prompt"


def test_what_is_for_the_template_is_kept_apart() -> None:
    assert asked(chat_template_kwargs={"enable_thinking": False}, reasoning_effort="low").variables == {
        "enable_thinking": False,
        "reasoning_effort": "low",
    }
    assert refusal("completions", enable_thinking=True).param == "enable_thinking"
