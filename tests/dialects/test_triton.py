"""Triton's dialect: what a model is given, what is understood of its errors, and the chunks that are made of its text.

The recordings in `recordings/real/triton` are what a real Triton said, with the models of tests/engines.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import errors
from gateway.call import Call, Kind
from gateway.config.fields import TENSORS
from gateway.dialects.template import Template
from gateway.dialects.triton import MEANINGS, PROFILES, Triton
from gateway.outcome import Outcome, judge, of_status
from gateway.wire import chat
from gateway.wire.gather import Gathered
from gateway.wire.sse import Event, Framer

FOLDER = Path(__file__).parent / "recordings" / "real" / "triton"
SOURCE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
SAID = "Grüße aus 東京 🎉"


def template(count: bool = False, source: str = SOURCE) -> Template:
    return Template(source, {}, lambda form: form, (lambda text: len(text.split())) if count else None)


def triton(profile: str = "python", tensors: dict[str, str | None] | None = None, **options: Any) -> Triton:
    return Triton(profile, tensors, **{"template": template(), "mint": lambda: ("1", 1_700_000_000), **options})


def call(kind: Kind = "chat", **members: Any) -> Call:
    prompt = {"messages": [{"role": "user", "content": "Hi."}]} if kind == "chat" else {"prompt": "Hi."}
    return chat.read_call(kind, json.dumps({"model": "m", **prompt, **members}).encode())


def recorded(name: str) -> tuple[int, bytes]:
    head, _, body = (FOLDER / f"{name}.http").read_bytes().partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def spoken(dialect: Triton, asked: Call, *pieces: bytes) -> list[Any]:
    """The data of all events that are made of a stream that arrives in these pieces."""
    framer, chunks = Framer(), dialect.translator(asked, "m")
    made: list[Event] = [event for piece in pieces for event in chunks.take(framer.feed(piece))]
    made += chunks.end()
    for raw, data in made:
        assert Framer().feed(raw) == [(raw, data)]
    return [data if data == b"[DONE]" else json.loads(data or b"null") for _, data in made]


def response(**members: Any) -> bytes:
    return b"data: " + json.dumps({"model_name": "m", "model_version": "1", **members}).encode() + b"\n\n"


def text_of(said: list[Any]) -> list[str]:
    choices = [one["choices"][0] for one in said if isinstance(one, dict) and one["choices"]]
    return [choice["delta"].get("content", "") for choice in choices]


# Where it goes.


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("chat", "/v2/models/llm/generate_stream"),
        ("completions", "/v2/models/llm/generate_stream"),
        ("embeddings", None),
        ("models", None),
    ],
)
def test_each_model_has_its_path(kind: Kind, path: str | None) -> None:
    assert triton().path(kind, "llm") == path


def test_without_a_template_there_is_no_chat() -> None:
    assert triton(template=None).path("chat", "llm") is None
    assert triton(template=None).path("completions", "llm") is not None


def test_a_models_name_can_not_leave_its_place_in_the_path() -> None:
    assert triton().path("chat", "../x?y#z") == "/v2/models/..%2Fx%3Fy%23z/generate_stream"
    assert triton().path("chat", "..") is triton().path("completions", ".") is None


def test_it_is_always_asked_for_a_stream_and_a_key_is_a_bearer() -> None:
    assert triton().streams(call(), "m") is True
    assert triton().headers("k") == [("authorization", "Bearer k")]
    assert triton().headers(None) == []


def test_health_is_asked_at_the_root_and_400_is_no_health() -> None:
    assert (Triton.health, Triton.checked, Triton.ailing) == ("/v2/health/ready", True, 400)


# What the model is given.

EVERYTHING: dict[str, Any] = {
    "max_completion_tokens": 7,
    "temperature": 1,
    "top_p": 0.5,
    "top_k": 4,
    "min_tokens": 1,
    "stop": "x",
    "seed": 2**40,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.25,
}
PARAMETERS = {**EVERYTHING, "max_tokens": 7, "stop": ["x"], "temperature": 1.0}
del PARAMETERS["max_completion_tokens"]


def test_the_vllm_backend_gets_its_parameters_as_one_text() -> None:
    body = json.loads(triton("vllm_backend").encode(call(**EVERYTHING, min_p=0.1), "m"))
    assert json.loads(body.pop("sampling_parameters")) == {**PARAMETERS, "min_p": 0.1}
    assert body == {
        "text_input": "<user>Hi.<assistant>",
        "stream": True,
        "exclude_input_in_output": True,
        "return_finish_reason": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    }


def test_tensorrt_llm_gets_a_tensor_for_each() -> None:
    body = json.loads(triton("tensorrtllm").encode(call(**EVERYTHING), "m"))
    stop = PARAMETERS["stop"]
    assert body == {
        "text_input": "<user>Hi.<assistant>",
        "stream": True,
        "exclude_input_in_output": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
        "stop_words": stop,
        **{name: value for name, value in PARAMETERS.items() if name != "stop"},
    }


def test_a_python_model_gets_what_the_smallest_of_them_take() -> None:
    body = json.loads(triton().encode(call(max_tokens=7, temperature=0, stop=["x", "y"]), "m"))
    expected = {"text_input": "<user>Hi.<assistant>", "stream": True, "max_tokens": 7, "temperature": 0.0}
    assert body == {**expected, "stop_words": ["x", "y"]}


def test_a_completions_prompt_goes_as_it_is() -> None:
    assert json.loads(triton().encode(call("completions"), "m"))["text_input"] == "Hi."
    assert json.loads(triton().encode(call("completions", prompt=["Hi."]), "m"))["text_input"] == "Hi."


def test_where_the_caller_sets_no_limit_the_config_does() -> None:
    assert json.loads(triton(max_tokens=99).encode(call(), "m"))["max_tokens"] == 99


def test_names_of_ones_own_stand_in_place_of_the_profiles() -> None:
    own = triton(tensors={"text_input": "PROMPT", "stop": "STOPS", "stream": None, "seed": "SEED", "max_tokens": None})
    body = json.loads(own.encode(call(stop="x", seed=7), "m"))
    assert body == {"PROMPT": "<user>Hi.<assistant>", "STOPS": ["x"], "SEED": 7}
    with pytest.raises(errors.CallerError, match="max_tokens"):
        own.encode(call(max_tokens=7), "m")


def test_what_a_template_looks_at_may_be_said_by_the_caller() -> None:
    thinks = triton(template=template(source=SOURCE + "{% if enable_thinking %}<think>{% endif %}"))
    for said in ({"chat_template_kwargs": {"enable_thinking": True}}, {"enable_thinking": True}):
        assert json.loads(thinks.encode(call(**said), "m"))["text_input"].endswith("<think>")
        with pytest.raises(errors.CallerError):
            triton().encode(call(**said), "m")


def test_every_profile_names_its_tensors_by_what_the_config_may_name_them() -> None:
    assert set(TENSORS) == MEANINGS
    for profile in PROFILES.values():
        assert {"text_input", "text_output"} <= profile.tensors.keys() <= MEANINGS


# What it says.

STREAMS: dict[str, tuple[Triton, list[str], dict[str, int] | None]] = {
    "python": (triton(), ["", "Grüße", " aus", " 東京", " 🎉", ""], None),
    "vllm_backend": (triton("vllm_backend"), ["", "Grüße", " aus", " 東京", " 🎉", ""], {"prompt": 4, "completion": 4}),
    "tensorrtllm": (triton("tensorrtllm", cumulative=True), ["", "Grüße", " aus", " 東京", " 🎉", ""], None),
    "once": (triton(), ["", SAID, ""], None),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_recorded_stream_becomes_chunks_wherever_it_is_split(name: str) -> None:
    dialect, texts, usage = STREAMS[name]
    _, body = recorded(name)
    asked = call(stream=True)
    whole = spoken(dialect, asked, body)
    assert text_of(whole) == texts
    assert whole[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    chunks = [one for one in whole if isinstance(one, dict) and one["choices"]]
    assert [one["choices"][0]["finish_reason"] for one in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert whole[-1] == b"[DONE]"
    counted = [one["usage"] for one in whole if isinstance(one, dict) and not one["choices"]]
    assert counted == (
        [] if usage is None else [{f"{key}_tokens": n for key, n in usage.items()} | {"total_tokens": 8}]
    )
    for at in range(1, len(body)):
        assert spoken(dialect, asked, body[:at], body[at:]) == whole


@pytest.mark.parametrize("name", STREAMS)
def test_a_plain_call_gets_a_recorded_stream_as_one_reply(name: str) -> None:
    dialect, chunks = STREAMS[name][0], STREAMS[name][0].translator(call(), "m")
    gathered = Gathered()
    for _, data in [*chunks.take(Framer().feed(recorded(name)[1])), *chunks.end()]:
        assert data is not None
        assert not gathered.take(data)
    assert gathered.complete
    reply = json.loads(gathered.reply())
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": SAID}
    assert (reply["id"], reply["object"], reply["created"]) == ("chatcmpl-1", "chat.completion", 1_700_000_000)
    assert dialect.streams(call(), "m")


def test_a_models_limit_is_a_length() -> None:
    said = spoken(triton(), call(stream=True), recorded("python_length")[1])
    assert said[-2]["choices"][0]["finish_reason"] == "length"


def test_a_completion_has_text_and_no_role() -> None:
    said = spoken(triton(), call("completions", stream=True), recorded("python")[1])
    assert [one["choices"][0]["text"] for one in said[:-1]] == ["Grüße", " aus", " 東京", " 🎉", ""]
    assert {(one["object"], one["id"]) for one in said[:-1]} == {("text_completion", "cmpl-1")}


def test_what_the_model_does_not_count_its_tokenizer_does() -> None:
    said = spoken(triton(template=template(count=True)), call(stream=True), recorded("python")[1])
    assert said[-2]["usage"] == {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}


def test_what_the_model_counts_is_not_counted_again() -> None:
    dialect = triton("vllm_backend", template=template(count=True))
    said = spoken(dialect, call(stream=True), recorded("vllm_backend")[1])
    assert said[-2]["usage"] == {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8}


@pytest.mark.parametrize(
    ("prompt", "answer", "counts", "slow"),
    [
        ("p" * 10, "a" * 10, False, False),
        ("p" * 2000, "a", False, True),
        ("p", "a" * 2000, False, True),
        ("p" * 2000, "a" * 2000, True, False),
    ],
)
def test_what_takes_long_to_count_is_said_to_and_what_the_model_counts_does_not(
    prompt: str, answer: str, counts: bool, slow: bool
) -> None:
    chunks = triton("vllm_backend", template=template(count=True)).translator(call("completions", prompt=prompt), "m")
    told = {"num_input_tokens": 1, "num_output_tokens": 1} if counts else {}
    chunks.take([(b"", json.dumps({"text_output": answer, **told}).encode())])
    assert chunks.slow_to_end is slow


@pytest.mark.parametrize(("prompt", "answer"), [("p" * 300_000, "a"), ("p", "a" * 300_000)])
def test_what_would_take_too_long_to_count_is_left_to_be_estimated(prompt: str, answer: str) -> None:
    dialect = triton(template=template(count=True))
    said = spoken(dialect, call("completions", prompt=prompt), response(text_output=answer))
    assert said[-1] == b"[DONE]"
    assert all("usage" not in one for one in said[:-1])


@pytest.mark.parametrize(("limit", "finish"), [(4, "length"), (5, "stop")])
def test_without_a_reason_the_counts_tell_a_limit(limit: int, finish: str) -> None:
    dialect = triton("tensorrtllm", cumulative=True, template=template(count=True))
    said = spoken(dialect, call(stream=True, max_tokens=limit), recorded("tensorrtllm")[1])
    assert said[-3]["choices"][0]["finish_reason"] == finish


def test_a_growing_text_keeps_back_a_character_that_is_not_whole() -> None:
    dialect = triton("tensorrtllm", cumulative=True)
    grown = [response(text_output=text) for text in ("a\ufffd", "a\ufffd\ufffd", "aé", "aé\ufffd")]
    assert text_of(spoken(dialect, call(), *grown)) == ["", "a", "é", "\ufffd", ""]


def test_a_growing_text_that_shrinks_says_nothing_twice() -> None:
    dialect = triton("tensorrtllm", cumulative=True)
    grown = [response(text_output=text) for text in ("abc", "ab", "abcd")]
    assert text_of(spoken(dialect, call(), *grown)) == ["", "abc", "d", ""]


def test_of_several_texts_the_first_is_the_answer() -> None:
    assert text_of(spoken(triton(), call(), response(text_output=["a", "b"]), response(text_output=[]))) == [
        "",
        "a",
        "",
    ]


def test_a_text_that_is_no_utf_8_is_made_visible() -> None:
    raw = b'data: {"text_output":"a\xff"}\n\n'
    assert text_of(spoken(triton(), call(), raw)) == ["", "a\ufffd", ""]
    half = b'data: {"text_output":"a\\ud83c"}\n\n'
    assert text_of(spoken(triton(), call(), half)) == ["", "a\ud83c", ""]


def test_text_after_the_reason_is_not_said() -> None:
    said = spoken(triton(), call(), response(text_output="a", finish_reason="eos"), response(text_output="b"))
    assert text_of(said) == ["", "a", ""]


@pytest.mark.parametrize("reason", ["abort", "cancelled"])
def test_an_answer_that_was_broken_off_has_no_end(reason: str) -> None:
    said = spoken(triton(), call(), response(text_output="a", finish_reason=reason))
    assert b"[DONE]" not in said
    assert all(one["choices"][0]["finish_reason"] is None for one in said)


def test_a_stream_without_a_response_is_no_answer() -> None:
    assert spoken(triton(), call()) == []


def test_what_is_no_response_goes_on_to_be_seen() -> None:
    chunks = triton().translator(call(), "m")
    for data in (b"[1]", b"nonsense"):
        event = (b"data: " + data + b"\n\n", data)
        assert chunks.take([event]) == [event]
    assert chunks.take([(b": comment\n\n", None)]) == [(b": comment\n\n", None)]


# What goes wrong.

REFUSED: dict[str, tuple[Outcome, int, str | None]] = {
    "failed_first": (Outcome.FAILED, 502, "upstream_error"),
    "wrong_type": (Outcome.FAILED, 502, "upstream_error"),
    "generate_of_many": (Outcome.FAILED, 502, "upstream_error"),
    "unhealthy": (Outcome.FAILED, 503, "upstream_unavailable"),
    "not_loaded": (Outcome.FAILED, 503, "upstream_unavailable"),
    "unknown": (Outcome.REJECTED, 404, "model_not_found"),
    "too_long": (Outcome.REJECTED, 400, "context_length_exceeded"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_error_means_what_its_words_mean(name: str) -> None:
    status, body = recorded(name)
    error = of_status(500 if status == 200 else status, triton().refusal(status, body), {})
    assert (judge(error), error.status, error.code) == REFUSED[name]
    words = json.loads(body.removeprefix(b"data: "))["error"]
    assert words not in error.message


@pytest.mark.parametrize(
    ("status", "words", "outcome"),
    [
        (503, "Exceeds maximum queue size", Outcome.OVERLOADED),
        (400, "[request id: 1] Exceeds maximum queue size", Outcome.OVERLOADED),
        (400, "Request for unknown model: 'x' version 1 is not at ready state", Outcome.FAILED),
        (400, "Model is unavailable due to unhealthy vLLM engine", Outcome.FAILED),
        (400, "The decoder prompt (length 50) is longer than the maximum model length of 40.", Outcome.REJECTED),
        (401, "", Outcome.UNAUTHORISED),
        (429, "", Outcome.OVERLOADED),
        (504, "", Outcome.TIMED_OUT),
    ],
)
def test_a_status_or_the_words_tell_the_outcome(status: int, words: str, outcome: Outcome) -> None:
    refusal = triton().refusal(status, json.dumps({"error": words}).encode())
    assert judge(of_status(status, refusal, {})) is outcome


def test_an_error_after_words_ends_the_stream_in_openais_form() -> None:
    said = spoken(triton(), call(stream=True), recorded("failed_later")[1] + response(text_output="more"))
    assert text_of(said[:-1]) == ["", "a", " FAIL"]
    assert said[-1] == {"error": {"message": "failed after two words"}}
    assert chat.read_chunk(json.dumps(said[-1]).encode()).failed
    refusal = triton().refusal(200, json.dumps(said[-1]).encode())
    assert judge(of_status(500, refusal, {})) is Outcome.FAILED


@given(st.binary(max_size=60), st.sampled_from([200, 400, 404, 500]))
def test_any_answer_can_be_told(body: bytes, status: int) -> None:
    assert of_status(500, triton().refusal(status, body), {}).message


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
RESPONSES = st.dictionaries(st.sampled_from([*MEANINGS, "error"]), JSON_VALUES, max_size=5)


@pytest.mark.parametrize("name", ["error", "finish_reason", "text_output", "num_output_tokens"])
def test_what_is_nested_as_deeply_as_can_be_read_is_survived(name: str) -> None:
    deep = b'{"%s":%s1%s}' % (name.encode(), b"[" * 1000, b"]" * 1000)
    for body in (deep, b'{"error":{"message":%s}}' % deep):
        assert spoken(triton("vllm_backend"), call(), b"data: " + body + b"\n\n") is not None
        assert of_status(500, triton().refusal(400, body), {}).message


@given(st.lists(RESPONSES, max_size=4), st.booleans())
def test_whatever_a_model_says_becomes_events(responses: list[dict[str, Any]], cumulative: bool) -> None:
    dialect = triton("tensorrtllm", cumulative=cumulative, template=template(count=True))
    for one in spoken(dialect, call(), *(response(**members) for members in responses)):
        assert one == b"[DONE]" or {"choices", "error"} & one.keys()
