"""What a call asks for, taken apart: for upstreams whose own bodies have to be made anew.

Elsewhere the caller's bytes go on and the upstream judges them. Where a body is made here, whatever is not understood here
would be lost without a word, so each parameter is checked and handed over, or refused by its name. Must not know upstreams.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from gateway.call import Call, Kind
from gateway.errors import CallerError, Unsupported

_MOST = 2**31 - 1
_NAME = re.compile(r"\w{1,64}")

# They say something about the call, and nothing about the answer.
_ABOUT = frozenset(
    (
        "model",
        "stream",
        "stream_options",
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
    )
)
# What asks for nothing that would not be so anyway, and so may stand there.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "repetition_penalty": (1, 1.0),
    "min_p": (0, 0.0),
    "min_tokens": (0,),
}


class Range(NamedTuple):
    """Numbers that may be asked for. `above`: the lower end itself may not."""

    type: type[int] | type[float]
    least: float
    most: float
    above: bool = False

    def holds(self, value: object) -> bool:
        """Whether `value` is a number of this kind, and within."""
        if type(value) is not int and (type(value) is not float or self.type is int):
            return False
        return self.least <= value <= self.most and not (self.above and value == self.least)

    def __str__(self) -> str:
        least, most = (int(end) if end == int(end) else end for end in (self.least, self.most))
        sort = "an integer" if self.type is int else "a number"
        return f"{sort} above {least}, and at most {most}" if self.above else f"{sort} from {least} to {most}"


_TOKENS = Range(int, 1, _MOST)
_RANGES: dict[str, Range] = {
    "max_tokens": _TOKENS,
    "min_tokens": Range(int, 0, _MOST),
    "temperature": Range(float, 0, 2),
    "top_p": Range(float, 0, 1, above=True),
    "top_k": Range(int, -1, _MOST),
    "min_p": Range(float, 0, 1),
    "seed": Range(int, 0, 2**63 - 1),
    "presence_penalty": Range(float, -2, 2),
    "frequency_penalty": Range(float, -2, 2),
    "repetition_penalty": Range(float, 0, 10, above=True),
}
SAMPLING = frozenset((*_RANGES, "stop"))
"""All that may be asked about how tokens are chosen and when to stop, under the names that `Asked` has for it."""


class Asked(NamedTuple):
    """`sampling`: of the names in SAMPLING, those that were given. `variables`: for the model's chat template."""

    messages: list[dict[str, Any]]
    prompt: str | None
    sampling: dict[str, int | float | list[str]]
    variables: dict[str, Any]


def read(call: Call, taken: frozenset[str], variables: frozenset[str]) -> Asked:
    """What `call` asks for. `taken`: what of SAMPLING the upstream can do; `variables`: what its template looks at.

    Raises CallerError for all else that would change the answer, and for what has no sense.
    """
    given: dict[str, Any] = orjson.loads(call.body)
    messages, prompt = given.pop("messages", None), given.pop("prompt", None)
    for_template = _for_template(call.kind, given, variables)
    sampling: dict[str, int | float | list[str]] = {}
    for name, value in given.items():
        meaning = "max_tokens" if name == "max_completion_tokens" else name
        if value is None or value == [] or name in _ABOUT:
            continue
        if meaning in taken:
            sampling[meaning] = _checked(name, meaning, value)
        elif not _is_neutral(name, value):
            raise refused(name)
    if call.kind == "chat":
        return Asked(_messages(messages), None, sampling, for_template)
    return Asked([], _prompt(prompt), sampling, {})


def refused(name: str, param: str | None = None) -> Unsupported:
    """The upstream can't do it, and to leave it out would be another call than the caller's."""
    told = name if _NAME.fullmatch(name) else "this parameter"
    return Unsupported(
        f"The upstream of this model can not honour {told}.",
        param=(param or name)[:64],
    )


def _is_neutral(name: str, value: object) -> bool:
    return any(type(value) is type(one) and value == one for one in _NEUTRAL.get(name, ()))


def _checked(name: str, meaning: str, value: object) -> int | float | list[str]:
    if meaning == "stop":
        stops = [value] if isinstance(value, str) else value
        if isinstance(stops, list) and all(isinstance(stop, str) and stop for stop in stops):
            return stops
        raise _wrong(name, "text, or a list of texts, none of them empty")
    wanted = _RANGES[meaning]
    if not wanted.holds(value) or not isinstance(value, int | float):
        raise _wrong(name, str(wanted))
    return wanted.type(value)


def _wrong(param: str, words: str) -> CallerError:
    return CallerError(f"{param} must be {words}.", code="invalid_value", param=param)


def _for_template(kind: Kind, given: dict[str, Any], variables: frozenset[str]) -> dict[str, Any]:
    """What is meant for the template, taken out of `given`: as vLLM takes it, or by the two names that others have."""
    kwargs = given.pop("chat_template_kwargs", None)
    if kwargs is not None and not isinstance(kwargs, dict):
        raise _wrong("chat_template_kwargs", "an object")
    looked_at = variables if kind == "chat" else frozenset()
    if kwargs and not looked_at >= kwargs.keys():
        raise refused("chat_template_kwargs")
    named = [name for name in ("enable_thinking", "reasoning_effort") if name in looked_at]
    return {**(kwargs or {}), **{name: given.pop(name) for name in named if given.get(name) is not None}}


def _prompt(prompt: object) -> str:
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list):
        raise Unsupported("The upstream of this model takes one prompt at a time, as text.", param="prompt")
    raise _wrong("prompt", "text")


def _messages(given: object) -> list[dict[str, Any]]:
    if not isinstance(given, list) or not given:
        raise _wrong("messages", "a list of at least one message")
    return [_message(f"messages[{index}]", message) for index, message in enumerate(given)]


def _message(place: str, given: object) -> dict[str, Any]:
    if not isinstance(given, Mapping) or not isinstance(given.get("role"), str):
        raise _wrong(place, "an object with a role")
    for name in ("tool_calls", "function_call", "audio"):
        if given.get(name):
            raise refused(name, f"{place}.{name}")
    role = given["role"]
    if role in ("tool", "function"):
        raise refused("tools", f"{place}.role")
    content = _content(f"{place}.content", given.get("content"))
    return {**given, "role": "system" if role == "developer" else role, "content": content}


def _content(place: str, content: object) -> str:
    """Text, as templates know it; parts are put together in the way that vLLM does it."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _wrong(place, "text, or a list of parts")
    return "\n".join(_text(f"{place}[{index}]", part) for index, part in enumerate(content))


def _text(place: str, part: object) -> str:
    sort = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(sort, str):
        raise _wrong(place, "an object with a type")
    if sort == "refusal" and isinstance(part.get("refusal"), str):
        return str(part["refusal"])
    if sort != "text":
        raise refused(sort, place)
    if not isinstance(part.get("text"), str):
        raise _wrong(f"{place}.text", "text")
    return str(part["text"])
