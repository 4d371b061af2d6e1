"""Qwen at Alibaba's Model Studio (DashScope), through its compatible mode.

It speaks as OpenAI does, but for three things: some models answer only in streams, or think unless they are told not to;
errors come in OpenAI's shape and in DashScope's own, that also under status 200; and what OpenAI calls an empty account
is here a limit on tokens per minute.
"""

import re
from collections.abc import Mapping
from typing import ClassVar

from gateway.call import Call
from gateway.dialects.openai import OpenAI
from gateway.dialects.thinking import Thinking
from gateway.outcome import Refusal
from gateway.wire.patch import usage_wish

_ONLY_STREAMS = re.compile(r"qwq|qvq|.*omni")
# The open models that can think or not: they do unless told otherwise, and can then not be asked for a plain reply.
_THINKS_UNASKED = re.compile(r"qwen3-[\d.]+b(?!.*-(?:instruct|thinking))")

_FREE_TIER = "free allocated quota exceeded"  # said with the code of a throttle


class Qwen(OpenAI):
    """`meanings`, `inside`: codes in small letters and without underscores, which makes the two ways of writing them one.

    One that is not there means what its part before the last dot means.
    """

    provider: ClassVar[str] = "qwen"

    meanings: ClassVar[Mapping[str, int]] = {
        "arrearage": 402,
        "commoditynotpurchased": 402,
        "prepaidbilloverdue": 402,
        "postpaidbilloverdue": 402,
        "unpurchased": 402,
        "accessdenied.unpurchased": 402,
        "allocationquota.freetieronly": 402,
        "freetieronly": 402,
        "throttling": 429,
        "limitrequests": 429,
        "limitburstrate": 429,
        "ratelimitexceeded": 429,
        "insufficientquota": 429,
        "requesttimeout": 504,
        "modelservingerror": 529,
        "model.accessdenied": 404,
        "modelaccessdenied": 404,
    }

    inside: ClassVar[Mapping[str, int]] = {
        "badrequest": 400,
        "invalidparameter": 400,
        "invalidparametererror": 400,
        "invalidrequesterror": 400,
        "datainspectionfailed": 400,
        "invalidapikey": 401,
        "accessdenied": 403,
        "modelnotfound": 404,
        "modelnotsupported": 404,
        "modelunavailable": 503,
    }

    def streams(self, call: Call, model: str) -> bool:
        """As the caller asked, but where the model can't do it otherwise."""
        if call.stream or call.kind != "chat":
            return call.stream
        name = model.lower()
        if _ONLY_STREAMS.match(name) is not None:
            return True
        return _THINKS_UNASKED.match(name) is not None and Thinking.of(call.body).wanted == b"true"

    def changes(self, call: Call, model: str) -> dict[str, bytes]:
        """As OpenAI's; a stream where there is nothing else; that a model is not to think where it could not answer otherwise."""
        changes = super().changes(call, model)
        if call.kind != "chat":
            return changes
        if not call.stream and self.streams(call, model):
            changes["stream"] = b"true"
            if not call.wants_usage:
                changes["stream_options"] = usage_wish(call)
        thinking = Thinking.of(call.body)
        changes |= thinking.at_top()
        if not call.stream and not thinking.wanted and _THINKS_UNASKED.match(model.lower()) is not None:
            changes["enable_thinking"] = b"false"
        return changes

    def refusal(self, status: int, body: bytes) -> Refusal:
        """As OpenAI's, but for an account whose free tokens are used up, which is told as if it were a throttle."""
        said = super().refusal(status, body)
        return said._replace(status=402) if _FREE_TIER in said.message.lower() else said

    def listed(self, statuses: Mapping[str, int], said: Refusal) -> int | None:
        """What is listed for a code, or else for a type."""
        found = (_listed(statuses, word) for word in (said.code, said.type) if word)
        return next((status for status in found if status is not None), None)


def _listed(statuses: Mapping[str, int], word: str) -> int | None:
    code = word.lower().replace("_", "")
    while code and code not in statuses:
        code = code.rpartition(".")[0]
    return statuses.get(code)
