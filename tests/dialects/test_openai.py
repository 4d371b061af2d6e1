"""OpenAI's dialect: where calls go, what is sent, and what is understood of refusals, whatever their shape."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.call import Kind
from gateway.dialects import DIALECTS
from gateway.outcome import Refusal, of_status
from gateway.wire.chat import read_call
from tests.wire.test_members import JSON

OPENAI = DIALECTS["openai"]()

PLAIN = b'{"model":"m","messages":[]}'
STREAM = b'{"model":"m","stream":true}'
ASKED = b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}'


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("chat", "/chat/completions"),
        ("completions", "/completions"),
        ("embeddings", "/embeddings"),
        ("models", "/models"),
    ],
)
def test_each_kind_has_its_path(kind: Kind, path: str) -> None:
    assert OPENAI.path(kind, "m") == path


def test_the_key_is_a_bearer_and_without_one_nothing_is_said() -> None:
    assert OPENAI.headers("sk-1") == [("authorization", "Bearer sk-1")]
    assert OPENAI.headers(None) == []


@pytest.mark.parametrize(
    ("body", "model", "sent"),
    [
        (PLAIN, "m", PLAIN),
        (PLAIN, "other", b'{"model":"other","messages":[]}'),
        (ASKED, "m", ASKED),
        (ASKED, "other", ASKED.replace(b'"m"', b'"other"')),
        (STREAM, "m", b'{"stream_options":{"include_usage":true},"model":"m","stream":true}'),
        (STREAM, "other", b'{"stream_options":{"include_usage":true},"model":"other","stream":true}'),
    ],
)
def test_only_what_must_be_is_patched(body: bytes, model: str, sent: bytes) -> None:
    call = read_call("chat", body)
    assert OPENAI.encode(call, model) == sent
    if sent == body:
        assert OPENAI.encode(call, model) is body


REFUSALS: list[tuple[str, bytes, Refusal]] = [
    (
        "openai",
        b'{"error":{"message":"Bad n.","type":"invalid_request_error","param":"n","code":"invalid_value"}}',
        Refusal("Bad n.", "invalid_request_error", "n", "invalid_value"),
    ),
    (
        "openai, out of quota",
        b'{"error":{"message":"You exceeded","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}',
        Refusal("You exceeded", "insufficient_quota", None, "insufficient_quota", 402),
    ),
    (
        "vllm, a number as code",
        b'{"error":{"message":"Too long.","type":"BadRequestError","param":null,"code":400}}',
        Refusal("Too long.", "BadRequestError"),
    ),
    ("vllm, text", b'{"error":"Unauthorized"}', Refusal("Unauthorized")),
    ("tgi", b'{"error":"Model is overloaded","error_type":"overloaded"}', Refusal("Model is overloaded", "overloaded")),
    (
        "tgi, in a stream",
        b'{"error":{"message":"Input validation error","http_status_code":422}}',
        Refusal("Input validation error"),
    ),
    (
        "sglang, flat",
        b'{"object":"error","message":"Too long.","type":"BadRequest","param":null,"code":400}',
        Refusal("Too long.", "BadRequest"),
    ),
    (
        "llama.cpp",
        b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}',
        Refusal("Loading model", "unavailable_error"),
    ),
    (
        "azure",
        b'{"error":{"code":"DeploymentNotFound","message":"No such deployment."}}',
        Refusal("No such deployment.", "", None, "DeploymentNotFound"),
    ),
    ("a gateway", b'{"statusCode":401,"message":"Access denied"}', Refusal("Access denied")),
    ("fastapi", b'{"detail":"Not Found"}', Refusal("Not Found")),
    (
        "fastapi, validation",
        b'{"detail":[{"loc":["body","n"],"msg":"Field required","type":"missing"},{"msg":"too long"},1]}',
        Refusal("Field required; too long"),
    ),
    ("error is null", b'{"error":null,"message":"Flat."}', Refusal("Flat.")),
    ("a string", b'"words"', Refusal("words")),
    ("nested too oddly", b'{"error":{"message":{"a":1},"type":[],"param":{},"code":null}}', Refusal()),
    ("a list", b'[{"error":{"message":"x"}}]', Refusal()),
    ("a boolean as code", b'{"error":{"message":"x","code":true}}', Refusal("x")),
    ("nothing", b"", Refusal()),
    ("an empty object", b"{}", Refusal()),
    ("null", b"null", Refusal()),
    ("html", b"<html><body><h1>502 Bad Gateway</h1></body></html>", Refusal()),
    ("not utf-8", b'{"error":{"message":"\xff"}}', Refusal()),
    ("a lone surrogate", b'{"error":{"message":"\\ud800"}}', Refusal()),
    ("cut short", b'{"error":{"mess', Refusal()),
    ("deep", b'{"error":' + b"[" * 100_000, Refusal()),
]


@pytest.mark.parametrize(
    ("body", "refusal"), [pytest.param(body, refusal, id=name) for name, body, refusal in REFUSALS]
)
def test_a_refusal_is_understood_in_every_shape(body: bytes, refusal: Refusal) -> None:
    assert OPENAI.refusal(400, body) == refusal


DRY = ["insufficient_quota", "credit_balance_exhausted", "project_spend_limit_exceeded", "billing_not_active"]


@pytest.mark.parametrize("word", DRY)
@pytest.mark.parametrize("status", [200, 400, 403, 429])
def test_a_dry_account_is_told_by_code_or_type_whatever_its_status(word: str, status: int) -> None:
    for error in ({"type": word, "code": None}, {"type": "x", "code": word}):
        assert OPENAI.refusal(status, json.dumps({"error": error}).encode()).status == 402


@pytest.mark.parametrize(
    ("status", "type_", "code", "meant"),
    [
        (429, "tokens", "rate_limit_exceeded", None),
        (429, "requests", "rate_limit_exceeded", None),
        (429, "rate_limit_error", "slow_down", None),
        (503, "rate_limit_error", "slow_down", 429),
        (503, "service_unavailable_error", "server_is_overloaded", 529),
        (503, "service_unavailable_error", None, None),
        (403, "invalid_request_error", "model_not_found", 404),
        (403, "invalid_request_error", "unsupported_country_region_territory", None),
        (404, "invalid_request_error", "model_not_found", None),
        (200, "tokens", "rate_limit_exceeded", 429),
        (200, "invalid_request_error", "invalid_api_key", 401),
        (200, "invalid_request_error", "context_length_exceeded", 400),
        (200, "server_error", None, None),
        (200, "x", "503", 503),
        (200, "invalid_request_error", "503", 503),
        (400, "x", "503", None),
    ],
)
def test_what_is_said_may_mean_another_status(status: int, type_: str, code: str | None, meant: int | None) -> None:
    body = json.dumps({"error": {"message": "m", "type": type_, "code": code}}).encode()
    assert OPENAI.refusal(status, body).status == meant


def test_endless_words_are_cut() -> None:
    refusal = OPENAI.refusal(400, json.dumps({"error": {"message": "x" * 100_000, "code": "y" * 100_000}}).encode())
    assert (len(refusal.message), len(refusal.code or "")) == (2000, 2000)
    refusal = OPENAI.refusal(400, json.dumps({"detail": [{"msg": "x" * 1500}] * 3}).encode())
    assert len(refusal.message) == 2000


@settings(deadline=None)
@given(st.binary(max_size=50) | JSON.map(lambda value: json.dumps({"error": value, "detail": value}).encode()))
def test_any_answer_can_be_told(body: bytes) -> None:
    for status in (400, 429, 500):
        told = json.loads(of_status(status, OPENAI.refusal(status, body), {}).body())["error"]
        assert set(told) == {"message", "type", "param", "code"}
        assert told["message"]
