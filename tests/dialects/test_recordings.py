"""Every recording against the dialect of its kind: what it means, whatever pieces it arrives in."""

import json
import re
from pathlib import Path

import pytest

from gateway import errors
from gateway.call import Usage
from gateway.dialects import DIALECTS
from gateway.outcome import Outcome, judge, of_status
from gateway.wire import chat
from gateway.wire.gather import Gathered
from gateway.wire.sse import Event, Framer
from tests.dialects.recordings import FOLDER, RECORDINGS, Recording

OVERLOADED, FAILED, TIMED_OUT = Outcome.OVERLOADED, Outcome.FAILED, Outcome.TIMED_OUT
REJECTED, UNAUTHORISED = Outcome.REJECTED, Outcome.UNAUTHORISED

# What is made of an error, and what its caller gets: a status and a code.
REFUSED: dict[str, tuple[Outcome, int, str | None]] = {
    "openai/throttled": (OVERLOADED, 429, "rate_limit_exceeded"),
    "openai/slow_down": (OVERLOADED, 429, "rate_limit_exceeded"),
    "openai/stream_throttled": (OVERLOADED, 429, "rate_limit_exceeded"),
    "openai/quota": (UNAUTHORISED, 503, "upstream_quota"),
    "openai/spend_limit": (UNAUTHORISED, 503, "upstream_quota"),
    "openai/not_for_project": (REJECTED, 404, "model_not_found"),
    "openai/overloaded": (OVERLOADED, 503, "upstream_overloaded"),
    "openai/bad_parameter": (REJECTED, 400, "invalid_value"),
    "openai/stream_error": (FAILED, 502, "upstream_error"),
    "qwen/tokens_per_minute": (OVERLOADED, 429, "rate_limit_exceeded"),
    "qwen/requests_per_minute": (OVERLOADED, 429, "rate_limit_exceeded"),
    "qwen/burst": (OVERLOADED, 429, "rate_limit_exceeded"),
    "qwen/free_quota": (UNAUTHORISED, 503, "upstream_quota"),
    "qwen/free_tier_only": (UNAUTHORISED, 503, "upstream_quota"),
    "qwen/arrearage": (UNAUTHORISED, 503, "upstream_quota"),
    "qwen/unpurchased": (UNAUTHORISED, 503, "upstream_quota"),
    "qwen/bill_overdue": (UNAUTHORISED, 503, "upstream_quota"),
    "qwen/not_purchased": (UNAUTHORISED, 503, "upstream_quota"),
    "qwen/inspection": (REJECTED, 400, "data_inspection_failed"),
    "qwen/must_not_think": (REJECTED, 400, "invalid_parameter_error"),
    "qwen/timeout": (TIMED_OUT, 504, "upstream_timeout"),
    "qwen/capacity": (OVERLOADED, 503, "upstream_overloaded"),
    "qwen/unavailable": (FAILED, 503, "upstream_unavailable"),
    "qwen/wrong_region": (UNAUTHORISED, 502, "upstream_auth"),
    "qwen/model_denied": (REJECTED, 404, "Model.AccessDenied"),
    "qwen/native_invalid": (REJECTED, 400, "InvalidParameter"),
    "qwen/native_throttled": (OVERLOADED, 429, "rate_limit_exceeded"),
    "qwen/native_internal": (FAILED, 502, "upstream_error"),
    "qwen/native_stream_throttled": (OVERLOADED, 429, "rate_limit_exceeded"),
    "qwen/native_stream_inspection": (REJECTED, 400, "DataInspectionFailed"),
    "vllm/queue_full": (OVERLOADED, 503, "upstream_overloaded"),
    "vllm/backlog": (OVERLOADED, 503, "upstream_overloaded"),
    "vllm/queue_full_in_stream": (OVERLOADED, 503, "upstream_overloaded"),
    "vllm/queue_full_after_role": (OVERLOADED, 503, "upstream_overloaded"),
    "vllm/scaling": (OVERLOADED, 503, "upstream_overloaded"),
    "vllm/engine_dead": (FAILED, 502, "upstream_error"),
    "vllm/died": (FAILED, 502, "upstream_error"),
    "vllm/unauthorized": (UNAUTHORISED, 502, "upstream_auth"),
    "vllm/model": (REJECTED, 404, "model_not_found"),
    "vllm/too_long": (REJECTED, 400, "context_length_exceeded"),
    "vllm/no_embeddings": (REJECTED, 404, None),
    "vllm/bad_parameter": (REJECTED, 400, None),
    "llamacpp/no_messages": (REJECTED, 400, None),
    "llamacpp/too_long": (REJECTED, 400, "context_length_exceeded"),
    "llamacpp/unauthorized": (UNAUTHORISED, 502, "upstream_auth"),
    "llamacpp/loading": (FAILED, 503, "upstream_unavailable"),
    "tgi/overloaded": (OVERLOADED, 503, "upstream_overloaded"),
    "tgi/validation": (REJECTED, 422, None),
    "tgi/generation": (FAILED, 502, "upstream_error"),
    "tgi/stream_generation": (FAILED, 502, "upstream_error"),
    "sglang/too_long": (REJECTED, 400, "context_length_exceeded"),
    "sglang/queue_full": (OVERLOADED, 503, "upstream_overloaded"),
    "sglang/stream_error": (FAILED, 502, "upstream_error"),
    "ollama/not_found": (REJECTED, 404, None),
    "ollama/busy": (OVERLOADED, 503, "upstream_overloaded"),
}
# The message that a plain caller gets of a stream, why it ended, and the tokens.
SERVED: dict[str, tuple[dict[str, object], str, Usage | None]] = {
    "openai/stream": ({"content": "Hello.", "refusal": None}, "stop", Usage(9, 2)),
    "openai/transformers_stream": (
        {"content": "<|im_start|>userhello<|im_start|>assistant" + "sistant" * 4},
        "length",
        Usage(9, 4),
    ),
    "qwen/reasoning_stream": (
        {"content": "\u4f60\u597d", "reasoning_content": "\u55ef\uff0c\u5148\u60f3\u4e00\u60f3\u3002"},
        "stop",
        Usage(17, 9, 0, 6),
    ),
    "qwen/tool_stream": (
        {
            "content": "",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
                }
            ],
        },
        "tool_calls",
        Usage(17, 9, 0, 6),
    ),
    "vllm/stream": ({"content": "sistant" * 4}, "length", Usage(8, 4)),
    "vllm/stream_counted": ({"content": "sistant" * 4}, "length", Usage(8, 4)),
    "vllm/schema_stream": ({"content": '{"city":"Rome"}'}, "stop", Usage(8, 9)),
    "vllm/tool_stream": (
        {
            "content": "",
            "tool_calls": [
                {
                    "id": "chatcmpl-tool-8f220a4af79504c6",
                    "type": "function",
                    "function": {"name": "look", "arguments": '{"city": "Rome"}'},
                }
            ],
        },
        "stop",
        Usage(198, 46),
    ),
    "llamacpp/stream": ({"content": "\ufffd"}, "length", Usage(9, 4, 8)),
    "tgi/stream_no_usage": ({"content": "Hello."}, "stop", None),
    "ollama/stream": ({"content": "Hello.", "reasoning": "Hm."}, "stop", Usage(9, 4)),
}
PLAIN = {
    "llamacpp/plain": Usage(7, 4),
    "vllm/plain": Usage(8, 4),
    "vllm/adapter": Usage(8, 4),
    "vllm/tool": Usage(198, 46),
}
STREAMS = [recording for recording in RECORDINGS.values() if recording.streamed]
OTHER = {"llamacpp/logprobs_stream", "llamacpp/completions_stream", "vllm/completions_stream"}


def named(*names: str) -> list[Recording]:
    return [RECORDINGS[name] for name in names]


def by_name(recording: Recording) -> str:
    return recording.name


def events(body: bytes) -> list[Event]:
    return Framer().feed(body)


def judged(recording: Recording, status: int, body: bytes) -> errors.GatewayError:
    refusal = recording.dialect.refusal(status, body)
    return of_status(500 if status == 200 else status, refusal, recording.headers)


def told(recording: Recording) -> errors.GatewayError:
    """The error of an answer, wherever in it that is."""
    if not recording.streamed:
        if recording.status == 200:
            assert chat.read_chunk(recording.body).failed
        return judged(recording, recording.status, recording.body)
    failed = [data for _, data in events(recording.body) if data and data != b"[DONE]" and chat.read_chunk(data).failed]
    assert len(failed) == 1
    return judged(recording, 200, failed[0])


def test_every_recording_is_of_a_kind_and_is_looked_at() -> None:
    assert set(RECORDINGS) == {*REFUSED, *SERVED, *PLAIN, *OTHER}
    assert {recording.kind for recording in RECORDINGS.values()} <= set(DIALECTS)


@pytest.mark.parametrize("recording", named(*REFUSED), ids=by_name)
def test_an_error_means_the_same_wherever_it_stands(recording: Recording) -> None:
    error = told(recording)
    assert (judge(error), error.status, error.code) == REFUSED[recording.name]
    words = json.loads(error.body())["error"]
    assert set(words) == {"message", "type", "param", "code"}
    assert words["message"]


@pytest.mark.parametrize("name", [name for name, (outcome, *_) in REFUSED.items() if outcome is not REJECTED])
def test_what_is_not_the_callers_fault_is_told_in_our_words(name: str) -> None:
    recording = RECORDINGS[name]
    for words in re.findall(rb'"message": ?"(.{12,}?)"', recording.body):
        assert words.decode() not in told(recording).message


@pytest.mark.parametrize("recording", STREAMS, ids=by_name)
def test_the_events_of_a_stream_are_the_same_split_at_every_byte(recording: Recording) -> None:
    body = recording.body
    whole = events(body)
    assert b"".join(raw for raw, _ in whole) == body
    for at in range(1, len(body)):
        framer = Framer()
        assert [*framer.feed(body[:at]), *framer.feed(body[at:])] == whole
    framer = Framer()
    assert [event for at in range(len(body)) for event in framer.feed(body[at : at + 1])] == whole


def gathered(recording: Recording) -> Gathered:
    whole = Gathered()
    for _, data in events(recording.body):
        if data and whole.take(data):
            break
    return whole


@pytest.mark.parametrize("recording", named(*SERVED), ids=by_name)
def test_a_stream_is_gathered_into_the_reply_that_it_would_have_been(recording: Recording) -> None:
    message, finish, usage = SERVED[recording.name]
    whole = gathered(recording)
    assert whole.complete
    reply = json.loads(whole.reply())
    (choice,) = reply["choices"]
    assert choice["message"] == {"role": "assistant", **message}
    assert choice["finish_reason"] == finish
    assert "delta" not in choice
    assert reply["object"] == "chat.completion"
    assert "obfuscation" not in reply
    if usage is not None:
        assert chat.read_usage(json.dumps(reply["usage"]).encode()) == usage


@pytest.mark.parametrize("recording", named("vllm/died", "openai/stream_error", "tgi/stream_generation"), ids=by_name)
def test_a_stream_that_failed_is_not_a_reply(recording: Recording) -> None:
    assert not gathered(recording).complete


@pytest.mark.parametrize(("name", "usage"), PLAIN.items())
def test_a_plain_reply_is_read(name: str, usage: Usage) -> None:
    read = chat.read_chunk(RECORDINGS[name].body)
    assert not read.failed
    assert chat.read_usage(read.usage) == usage


def test_probabilities_of_tokens_are_gathered() -> None:
    (choice,) = json.loads(gathered(RECORDINGS["llamacpp/logprobs_stream"]).reply())["choices"]
    tokens = [token["token"] for token in choice["logprobs"]["content"]]
    assert "".join(tokens) == choice["message"]["content"] == "sistant" * 3


@pytest.mark.parametrize(
    ("name", "text", "tokens"),
    [("llamacpp/completions_stream", ";1234\ufffd", (1, 3)), ("vllm/completions_stream", " quick" * 4, (2, 4))],
)
def test_a_completion_is_gathered(name: str, text: str, tokens: tuple[int, int]) -> None:
    reply = json.loads(gathered(RECORDINGS[name]).reply())
    (choice,) = reply["choices"]
    assert (reply["object"], choice["text"], choice["finish_reason"]) == ("text_completion", text, "length")
    assert (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"]) == tokens


@pytest.mark.parametrize("source", ["real", "written"])
def test_where_each_recording_comes_from_is_told(source: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (Real|Written)\b.*?\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    listed = set(re.findall(r"`(\w+/\w+)`", sections[source.capitalize()]))
    assert listed == {f"{path.parent.name}/{path.stem}" for path in (FOLDER / source).glob("*/*.http")}
