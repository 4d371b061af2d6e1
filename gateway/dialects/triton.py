"""Triton's generate extension, which knows tensors and no chat: a prompt goes in, and pieces of text come out.

Messages are written as the model's chat template wants them, parameters go into the tensors that a profile names, and what
comes back is made into OpenAI's chunks. It is always asked for a stream, which models of both sorts (decoupled or not)
answer; a plain call's is gathered. The same bodies go over gRPC, where a transport stands in for this extension.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote

import orjson

from gateway.call import Call, Kind
from gateway.dialects.asked import SAMPLING, Asked, read
from gateway.dialects.template import Template
from gateway.outcome import Refusal
from gateway.wire.sse import Event

Mint = Callable[[], tuple[str, int]]
"""An id that no other answer has, and the time in seconds since 1970."""

INPUTS = SAMPLING | {"text_input", "stream"}
OUTPUTS = frozenset(("text_output", "finish_reason", "num_input_tokens", "num_output_tokens"))
MEANINGS = INPUTS | OUTPUTS
"""What a tensor may mean: the names by which a profile, or a config in its place, says what a model calls it."""


class Profile(NamedTuple):
    """What a sort of model calls its tensors, by what they mean.

    `always`: what it is told besides, with every call. `packed`: the tensor that takes all parameters at once, as JSON.
    """

    tensors: Mapping[str, str]
    always: Mapping[str, bool] = {}
    packed: str | None = None


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_COUNTED = {"return_num_input_tokens": True, "return_num_output_tokens": True, "exclude_input_in_output": True}
PROFILES: dict[str, Profile] = {
    "python": Profile(
        _same("text_input", "stream", "max_tokens", "temperature", "top_p", "text_output", "finish_reason")
        | {"stop": "stop_words"}
    ),
    "vllm_backend": Profile(_same(*MEANINGS), {**_COUNTED, "return_finish_reason": True}, packed="sampling_parameters"),
    "tensorrtllm": Profile(
        {**_same(*MEANINGS - {"finish_reason", "min_p"}), "stop": "stop_words"},
        _COUNTED,
    ),
}

_MOST = 1 << 62
_QUICKLY_COUNTED = 1 << 10  # characters, which a tokenizer has counted in about two milliseconds
_MOST_COUNTED = 1 << 18  # characters, which take it half a second: a longer text is left to whoever estimates
_LONGEST = 2000  # characters of an upstream's words that are looked at
_LENGTH = frozenset(("length", "max_tokens", "max_length"))
_BROKEN_OFF = frozenset(("abort", "cancelled", "canceled", "error"))
_NOT_YET = frozenset(("", "none", "null"))
_CUT = "\N{REPLACEMENT CHARACTER}"  # a character of which the model has said only a part

# In this order. Nearly everything that goes wrong has the status 400 there, so that the words must be looked at.
_SAYINGS: tuple[tuple[re.Pattern[str], Refusal], ...] = (
    (re.compile(r"maximum queue size|queue is full", re.IGNORECASE), Refusal("busy", status=529)),
    (
        re.compile(r"not ready|not healthy|unhealthy|no available versions|unavailable|shutting down", re.IGNORECASE),
        Refusal("not ready", status=503),
    ),
    (
        re.compile(
            r"\b(?:prompt|input|context|sequence)\b.{0,80}\b(?:exceeds|longer than|too long|larger than)\b",
            re.IGNORECASE,
        ),
        Refusal(
            "The prompt, or the prompt and what is to follow it, is longer than this model takes.",
            "invalid_request_error",
            "messages",
            "context_length_exceeded",
            400,
        ),
    ),
)
_NO_MODEL = Refusal("The upstream does not have this model.", "invalid_request_error", "model", "model_not_found", 404)
_OF_A_PROXY = frozenset((401, 402, 403, 407, 408, 413, 429, 502, 503, 504, 529))


class Triton:
    """What models behind one Triton are asked, and what they answer.

    `profile`, and `tensors` in place of what it says (None: the model has none for that). `template`: without it there is
    no chat, and nobody to count for a model that does not. `max_tokens`: where the caller sets no limit. `cumulative`: each
    response holds all of the text so far.
    """

    health: ClassVar[str] = "/v2/health/ready"
    checked: ClassVar[bool] = True
    ailing: ClassVar[int] = 400
    provider: ClassVar[str] = "triton"

    def __init__(
        self,
        profile: str = "python",
        tensors: Mapping[str, str | None] | None = None,
        *,
        template: Template | None = None,
        max_tokens: int = 1024,
        cumulative: bool = False,
        mint: Mint,
    ) -> None:
        chosen = PROFILES[profile]
        named = {**chosen.tensors, **(tensors or {})}
        self._profile = chosen._replace(tensors={meaning: name for meaning, name in named.items() if name is not None})
        self._taken = SAMPLING & self._profile.tensors.keys()
        self._template = template
        self._variables: frozenset[str] = frozenset() if template is None else template.variables
        self._max_tokens = max_tokens
        self.count = None if template is None else template.count
        self.cumulative = cumulative
        self.mint = mint

    def path(self, kind: Kind, model: str) -> str | None:
        """The model's own path; None for what no text model does, and for chat without a template."""
        chats = kind == "chat" and self._template is not None
        if (chats or kind == "completions") and model not in (".", ".."):
            return f"/v2/models/{quote(model, safe='')}/generate_stream"
        return None

    def headers(self, api_key: str | None) -> list[tuple[str, str]]:
        """A key as a bearer token, for whatever stands before Triton: it has none itself."""
        return [] if api_key is None else [("authorization", f"Bearer {api_key}")]

    def streams(self, call: Call, model: str) -> bool:  # noqa: ARG002  # others have models that can not
        """Always: a plain call's silence is then as short as a stream's, and `generate` can't take decoupled models."""
        return True

    def encode(self, call: Call, model: str) -> bytes:  # noqa: ARG002  # the path says it
        """Prompt and parameters, each in its tensor. Raises CallerError for what no tensor takes."""
        asked = self._read(call)
        profile = self._profile
        names = profile.tensors
        sampling = {names[meaning]: value for meaning, value in asked.sampling.items()}
        body: dict[str, Any] = {names["text_input"]: self._prompt(asked), **profile.always}
        if "stream" in names:
            body[names["stream"]] = True
        if profile.packed is None:
            body |= sampling
        else:
            body[profile.packed] = orjson.dumps(sampling).decode()
        return orjson.dumps(body)

    def translator(self, call: Call, model: str) -> "Chunks":
        """What makes chunks of what this call's model says."""
        return Chunks(self, call, model)

    def refusal(self, status: int, body: bytes) -> Refusal:
        """By its words, and else as a failure of the model.

        Triton answers 400 to whatever it has no better number for. What the caller may say has been looked at before it
        was sent, so but for a length that only the model knows it is not the caller's fault.
        """
        words = _words(body)
        for saying, refusal in _SAYINGS:
            if saying.search(words):
                return refusal
        if status == 404:
            return _NO_MODEL
        return Refusal() if status in _OF_A_PROXY else Refusal(status=500)

    def counted(self, call: Call) -> tuple[str | None, int]:
        """The prompt, where it may have to be counted, and how many tokens the answer may have."""
        asked = self._read(call)
        limit = asked.sampling.get("max_tokens")
        return None if self.count is None else self._prompt(asked), limit if isinstance(limit, int) else _MOST

    def meant(self, response: Mapping[str, Any], meaning: str) -> Any:
        """The value of the output that means `meaning`, the first of several; None where there is none."""
        name = self._profile.tensors.get(meaning)
        value = None if name is None else response.get(name)
        if isinstance(value, list):
            return value[0] if value else None
        return value

    def _read(self, call: Call) -> Asked:
        asked = read(call, self._taken, self._variables)
        if "max_tokens" in self._taken:
            asked.sampling.setdefault("max_tokens", self._max_tokens)
        return asked

    def _prompt(self, asked: Asked) -> str:
        if asked.prompt is not None:
            return asked.prompt
        if self._template is None:
            raise RuntimeError("there is no path for chat without a template")
        return self._template.render(asked.messages, asked.variables)


class Chunks:
    """The stream of one answer, in OpenAI's words."""

    __slots__ = (
        "_aborted",
        "_begun",
        "_chat",
        "_failed",
        "_finish",
        "_head",
        "_held",
        "_input",
        "_length",
        "_limit",
        "_output",
        "_prompt",
        "_texts",
        "_triton",
    )

    def __init__(self, triton: Triton, call: Call, model: str) -> None:
        self._triton = triton
        self._prompt, self._limit = triton.counted(call)
        self._chat = call.kind == "chat"
        name, created = triton.mint()
        self._head = {
            "id": f"chatcmpl-{name}" if self._chat else f"cmpl-{name}",
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": created,
            "model": model,
        }
        self._begun = False  # there was a response
        self._texts: list[str] = []  # what has been said, if it is to be counted
        self._length = 0  # characters of what has been said
        self._held = ""  # what has come, and has not been said
        self._finish: str | None = None
        self._input: int | None = None
        self._output: int | None = None
        self._aborted = False
        self._failed = False

    @property
    def slow_to_end(self) -> bool:
        """Whether there is much that the model has not counted, and its tokenizer will."""
        if self._triton.count is None:
            return False
        left = 0 if self._output is not None else self._length
        return left + len(self._prompt or "") > _QUICKLY_COUNTED

    def take(self, events: list[Event]) -> list[Event]:
        """The chunks for these responses."""
        made: list[Event] = []
        for raw, data in events:
            if not data:
                made.append((raw, data))
            elif not self._failed:
                made += self._response(raw, data)
        return made

    def end(self) -> list[Event]:
        """Why it ended, what it has cost, and that it is over. Nothing where it is not: that is then seen as what it is."""
        if not self._begun or self._failed or self._aborted:
            return []
        made = self._rest()
        usage = self._usage()
        if self._finish is None:
            full = usage is not None and usage["completion_tokens"] >= self._limit
            made.append(self._finished("length" if full else "stop"))
        if usage is not None:
            made.append(_event({**self._head, "choices": [], "usage": usage}))
        return [*made, (b"data: [DONE]\n\n", b"[DONE]")]

    def _response(self, raw: bytes, data: bytes) -> Iterable[Event]:
        response = _object(data)
        if response is None:
            return [(raw, data)]  # whoever reads it will say that it is nothing
        if response.get("error"):
            self._failed = True
            return [_event({"error": {"message": _text(response["error"])[:_LONGEST]}})]
        made: list[Event] = []
        if not self._begun and self._chat:
            made.append(self._choice({"role": "assistant", "content": ""}))
        self._tally(response)
        self._begun = True
        if self._finish is not None:
            return made
        if text := self._new(response):
            made.append(self._piece(text))
        reason = _text(self._triton.meant(response, "finish_reason")).lower()
        if reason in _BROKEN_OFF:
            self._aborted = True
        elif reason not in _NOT_YET:
            made += [*self._rest(), self._finished("length" if reason in _LENGTH else "stop")]
        return made

    def _new(self, response: Mapping[str, Any]) -> str:
        """What a response adds. Where it holds all so far, a last character that may yet become another one waits."""
        text = self._triton.meant(response, "text_output")
        if not isinstance(text, str):
            return ""
        if not self._triton.cumulative:
            return text
        began, ended = self._length, max(self._length, len(text.rstrip(_CUT)))
        self._held = text[ended:]
        return text[began:ended]

    def _rest(self) -> list[Event]:
        held, self._held = self._held, ""
        return [self._piece(held)] if held else []

    def _tally(self, response: Mapping[str, Any]) -> None:
        """What the model counts."""
        read, written = (self._triton.meant(response, name) for name in ("num_input_tokens", "num_output_tokens"))
        if isinstance(written, int):
            self._output = written + (0 if self._triton.cumulative else self._output or 0)
        if isinstance(read, int):
            self._input, self._prompt = read, None

    def _usage(self) -> dict[str, int] | None:
        """None where nobody has counted, for whoever estimates."""
        read = self._counted(self._prompt) if self._input is None else self._input
        written = self._counted("".join(self._texts)) if self._output is None else self._output
        if read is None or written is None:
            return None
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def _counted(self, text: str | None) -> int | None:
        count = self._triton.count
        return None if text is None or count is None or len(text) > _MOST_COUNTED else count(text)

    def _piece(self, text: str) -> Event:
        self._length += len(text)
        if self._triton.count is not None:
            self._texts.append(text)
        return self._choice({"content": text}) if self._chat else self._choice(text)

    def _finished(self, reason: str) -> Event:
        self._finish = reason
        return self._choice({} if self._chat else "", reason)

    def _choice(self, said: Mapping[str, str] | str, finish: str | None = None) -> Event:
        member = "delta" if self._chat else "text"
        choice = {"index": 0, member: said, "logprobs": None, "finish_reason": finish}
        return _event({**self._head, "choices": [choice]})


def _event(told: Mapping[str, Any]) -> Event:
    try:
        data = orjson.dumps(told)
    except TypeError:  # half a surrogate pair, which only an escape can have brought
        data = json.dumps(told).encode()
    return b"data: " + data + b"\n\n", data


def _object(data: bytes) -> dict[str, Any] | None:
    """A JSON object; Triton does not look whether a model's text is UTF-8, so what is not is made visible."""
    try:
        read = orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            read = json.loads(data.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return None
    return read if isinstance(read, dict) else None


def _words(body: bytes) -> str:
    """`{"error": "..."}`, as it is or as a stream's event, and in either form that it has here."""
    read = _object(body.strip().removeprefix(b"data:").strip()) or {}
    error = read.get("error")
    return _text(error.get("message") if isinstance(error, dict) else error)[:_LONGEST]


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
