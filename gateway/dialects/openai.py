"""OpenAI's own tongue, and that of everything that speaks it unchanged: the hub that the other dialects differ from.

Where others differ only in what they call things, they say so in the tables of this class.
"""

from collections.abc import Mapping
from typing import ClassVar

import orjson

from gateway.call import Call, Kind
from gateway.outcome import Refusal
from gateway.wire.patch import patched, usage_wish

PATHS: dict[Kind, str] = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "embeddings": "/embeddings",
    "models": "/models",
}
_DRY = (
    "insufficient_quota",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
    "billing_not_active",
    "billing_hard_limit_reached",
)
_LONGEST = 2000  # characters of a word or message that is passed on


class OpenAI:
    """The body goes as it came, but for the model's name and the wish for usage at the end of a stream.

    `meanings`: what an error's code or type means, as a status, whatever status it came with: 402 for an account that is
    dry, 529 for a server that has too much to do. `inside`: the status of those that come under 200 and give none, within
    a stream or in place of a reply. `statuses`: what is meant by those that are used otherwise. `busy`: what a 503 says
    that means 529, and not that something is broken. `codes`: OpenAI's for what is said without one.
    """

    health: str = PATHS["models"]
    checked: ClassVar[bool] = False
    ailing: ClassVar[int] = 500
    provider: ClassVar[str] = "openai"

    meanings: ClassVar[Mapping[str, int]] = {
        **dict.fromkeys(_DRY, 402),
        "slow_down": 429,
        "server_is_overloaded": 529,
    }
    inside: ClassVar[Mapping[str, int]] = {
        "invalid_api_key": 401,
        "authentication_error": 401,
        "permission_error": 403,
        "model_not_found": 404,
        "not_found_error": 404,
        "rate_limit_exceeded": 429,
        "rate_limit_error": 429,
        "tokens": 429,
        "requests": 429,
        "service_unavailable_error": 503,
        "overloaded_error": 529,
        "invalid_request_error": 400,
    }
    busy: ClassVar[tuple[str, ...]] = ()
    statuses: ClassVar[Mapping[int, int]] = {}
    codes: ClassVar[Mapping[str, str]] = {}

    def path(self, kind: Kind, model: str) -> str | None:  # noqa: ARG002  # others have a path for each model
        """Where calls of `kind` go."""
        return PATHS[kind]

    def headers(self, api_key: str | None) -> list[tuple[str, str]]:
        """The key as a bearer token."""
        return [] if api_key is None else [("authorization", f"Bearer {api_key}")]

    def streams(self, call: Call, model: str) -> bool:  # noqa: ARG002  # others have models that can only stream
        """As the caller asked."""
        return call.stream

    def encode(self, call: Call, model: str) -> bytes:
        """The original bytes, patched where they must be."""
        return patched(call, self.changes(call, model))

    def changes(self, call: Call, model: str) -> dict[str, bytes]:
        """What the body must say otherwise than the caller has said it."""
        changes: dict[str, bytes] = {}
        if model != call.model:
            changes["model"] = orjson.dumps(model)
        if call.stream and not call.wants_usage:
            changes["stream_options"] = usage_wish(call)
        return changes

    def translator(self, call: Call, model: str) -> None:
        """None: what comes is what callers expect."""

    def refusal(self, status: int, body: bytes) -> Refusal:
        """The words, the status that they mean, and OpenAI's code where there is one for them."""
        said = _words(body)
        came = (said.status or self.listed(self.inside, said) or 200) if status == 200 else status
        meant = self.listed(self.meanings, said) or self.statuses.get(came, came)
        if meant == 403 and said.code == "model_not_found":
            meant = 404  # for this project
        elif meant == 503 and any(words in said.message.lower() for words in self.busy):
            meant = 529
        words = said.type + said.message
        code = said.code or next((code for told, code in self.codes.items() if told in words), None)
        return said._replace(code=code, status=None if meant == status else meant)

    def listed(self, statuses: Mapping[str, int], said: Refusal) -> int | None:
        """What is listed for a code, or else for a type."""
        return statuses.get(said.code or "") or statuses.get(said.type)


def _words(body: bytes) -> Refusal:
    """`{"error": {...}}` as OpenAI has it, and what else is sent in its place by those who speak like it.

    `{"error": "text"}`, a flat object, FastAPI's `{"detail": ...}`. A code that is a number is a status.
    """
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return Refusal()
    flat = answer if isinstance(answer, dict) else {}
    error = flat.get("error") or flat or answer
    if isinstance(error, str):
        return Refusal(message=_clean(error), type=_clean(flat.get("error_type")))
    if not isinstance(error, dict):
        return Refusal()
    code = _clean(error.get("code"))
    return Refusal(
        message=_clean(error.get("message")) or _detail(error.get("detail")),
        type=_clean(error.get("type")),
        param=_clean(error.get("param")) or None,
        code=None if _status(code) else code or None,
        status=_status(code) or _status(_clean(error.get("http_status_code"))),
    )


def _status(code: str) -> int | None:
    return int(code) if len(code) == 3 and code.isdecimal() and 400 <= int(code) < 600 else None


def _detail(detail: object) -> str:
    """FastAPI's: words, or a list of what is wrong with the request."""
    if isinstance(detail, list):
        told = [_clean(mistake.get("msg")) for mistake in detail if isinstance(mistake, dict)]
        return _clean("; ".join(words for words in told if words))
    return _clean(detail)


def _clean(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value[:_LONGEST] if isinstance(value, str) else ""
