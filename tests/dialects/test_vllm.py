"""vLLM's dialect and those of the engines beside it: how a model is told whether to think, and where health is asked."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings

from gateway.outcome import of_status
from gateway.wire.chat import read_call
from tests.dialects.recordings import dialect
from tests.wire.test_call import OBJECTS

ENGINES = ["vllm", "sglang", "llamacpp"]
OFF, ON = {"enable_thinking": False}, {"enable_thinking": True}


def encoded(kind: str, body: bytes) -> bytes:
    return dialect(kind).encode(read_call("chat", body), "m")


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize(
    ("members", "changes"),
    [
        (OFF, {"chat_template_kwargs": OFF}),
        ({**ON, "chat_template_kwargs": None}, {"chat_template_kwargs": ON}),
        ({**ON, "chat_template_kwargs": {}}, {"chat_template_kwargs": ON}),
        ({**ON, "chat_template_kwargs": {"x": [1]}}, {"chat_template_kwargs": {"x": [1], **ON}}),
        ({**ON, "chat_template_kwargs": {"enable_thinking": None}}, {"chat_template_kwargs": ON}),
    ],
)
def test_the_switch_goes_where_the_template_looks_for_it(
    kind: str, members: dict[str, Any], changes: dict[str, Any]
) -> None:
    done = json.loads(encoded(kind, json.dumps({"model": "m", "messages": [], **members}).encode()))
    assert done == {"model": "m", "messages": [], **changes}


def test_where_both_are_given_the_engines_own_counts() -> None:
    done = json.loads(encoded("vllm", json.dumps({"model": "m", **OFF, "chat_template_kwargs": ON}).encode()))
    assert done == {"model": "m", "chat_template_kwargs": ON}


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","chat_template_kwargs":{"enable_thinking":true}}',
        b'{"model":"m","enable_thinking":null}',
        b'{"model":"m","enable_thinking":true,"chat_template_kwargs":"odd"}',
        b'{"model":"m","enable_thinking":true,"chat_template_kwargs":[1]}',
        b'{"model":"m","messages":[{"content":"\\"enable_thinking\\":true"}],"x":{"enable_thinking":true}}',
        b'{"model":"m","x":"\\u0065"}',
    ],
)
def test_what_needs_no_change_is_the_body_itself(body: bytes) -> None:
    call = read_call("chat", body)
    assert dialect("vllm").encode(call, "m") is body


def test_a_switch_in_disguise_or_given_twice_is_moved_and_the_rest_stays_byte_for_byte() -> None:
    body = b'{ "x":1.10 ,"enable\\u005fthinking" : false , "model":"m", "enable_thinking":true,"y":"\\u00e9" }'
    assert encoded("vllm", body) == (
        b'{"chat_template_kwargs":{"enable_thinking":true}, "x":1.10 ,"model":"m", "y":"\\u00e9" }'
    )
    kwargs = b'{"model":"m","enable_thinking":true,"chat_template_kwargs" : { "a": 1.10 } }'
    assert encoded("vllm", kwargs) == b'{"model":"m","chat_template_kwargs" : {"enable_thinking":true, "a": 1.10 } }'


def test_model_usage_and_switch_are_patched_together() -> None:
    call = read_call("chat", b'{"enable_thinking":false,"model":"alias","stream":true}')
    assert json.loads(dialect("vllm").encode(call, "Qwen/Qwen3-8B")) == {
        "model": "Qwen/Qwen3-8B",
        "stream": True,
        "stream_options": {"include_usage": True},
        "chat_template_kwargs": OFF,
    }


@settings(max_examples=200, deadline=None)
@given(OBJECTS)
def test_a_body_that_was_made_for_one_tongue_means_the_same_in_the_other(members: dict[str, Any]) -> None:
    body = json.dumps({**members, "model": "m", "enable_thinking": True, "chat_template_kwargs": {"a": 1}}).encode()
    there = encoded("vllm", body)
    assert json.loads(there)["chat_template_kwargs"] == {"a": 1, **ON}
    assert json.loads(encoded("qwen", there)) == json.loads(body)


def test_only_chats_have_a_template() -> None:
    body = b'{"model":"m","enable_thinking":true,"input":"x"}'
    assert dialect("vllm").encode(read_call("embeddings", body), "m") is body


@pytest.mark.parametrize(
    ("kind", "path", "asked"),
    [
        ("openai", "/v1/models", False),
        ("qwen", "/v1/models", False),
        ("vllm", "/health", True),
        ("sglang", "/v1/models", True),
        ("llamacpp", "/health", True),
        ("tgi", "/health", True),
        ("ollama", "/api/version", True),
    ],
)
def test_health_is_asked_where_it_costs_nothing(kind: str, path: str, asked: bool) -> None:
    spoken = dialect(kind)
    assert spoken.checked is asked
    for base in ("http://engine:8000", "http://proxy/engine"):
        expected = path if base.endswith("8000") else f"/engine{path}"
        assert httpx.URL(f"{base}/v1{spoken.health}").path == expected


@pytest.mark.parametrize("kind", ["vllm", "sglang", "ollama", "llamacpp", "tgi"])
def test_a_503_that_says_nothing_of_load_is_a_failure(kind: str) -> None:
    for body in (b"", b'{"error":{"message":"EngineCore is dead.","code":503}}'):
        refusal = dialect(kind).refusal(503, body)
        assert of_status(503, refusal, {}).code == "upstream_unavailable"


@pytest.mark.parametrize(("code", "status"), [(503, 503), (400, 400), (599, 599), (200, None), (600, None), (0, None)])
def test_a_number_as_code_is_the_status_of_an_error_in_a_stream(code: int, status: int | None) -> None:
    refusal = dialect("vllm").refusal(200, json.dumps({"error": {"message": "m", "code": code}}).encode())
    assert refusal.status == status
    refusal = dialect("vllm").refusal(400, json.dumps({"error": {"message": "m", "code": code}}).encode())
    assert refusal.status is None
