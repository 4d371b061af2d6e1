"""OpenAI's own tongue, and that of everything that speaks it unchanged: the hub that the other dialects differ from."""

from typing import ClassVar

import orjson

from gateway.call import Call, Kind
from gateway.outcome import Refusal
from gateway.wire import chat

_PATHS: dict[Kind, str] = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "embeddings": "/embeddings",
    "models": "/models",
}
_DRY = frozenset(
    (
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
    )
)
_LONGEST = 2000  # characters of a word or message that is passed on


class OpenAI:
    """The body goes as it came, but for the model's name and the wish for usage at the end of a stream."""

    health: ClassVar[str] = _PATHS["models"]
    checked: ClassVar[bool] = False

    def path(self, kind: Kind, model: str) -> str | None:  # noqa: ARG002  # others have a path for each model
        """Where calls of `kind` go."""
        return _PATHS[kind]

    def headers(self, api_key: str | None) -> list[tuple[str, str]]:
        """The key as a bearer token."""
        return [] if api_key is None else [("authorization", f"Bearer {api_key}")]

    def streams(self, call: Call, model: str) -> bool:  # noqa: ARG002  # others have models that can only stream
        """As the caller asked."""
        return call.stream

    def encode(self, call: Call, model: str) -> bytes:
        """The original bytes, patched where they must be."""
        return chat.patched(
            call,
            model=None if model == call.model else model,
            include_usage=call.stream and not call.wants_usage,
        )

    def translator(self, call: Call, model: str) -> None:
        """None: what comes is what callers expect."""

    def refusal(self, status: int, body: bytes) -> Refusal:
        """The words, and the status that they mean: a dry account comes as 429, a model not for this project as 403."""
        refusal = self._words(body)
        if status in (200, 429) and not {refusal.type, refusal.code}.isdisjoint(_DRY):
            return refusal._replace(status=402)
        if status == 403 and refusal.code == "model_not_found":
            return refusal._replace(status=404)
        return refusal

    def _words(self, body: bytes) -> Refusal:
        """`{"error": {...}}` as OpenAI has it, and what else is sent in its place by those who speak like it.

        `{"error": "text"}`, a flat object, FastAPI's `{"detail": ...}`; numbers as codes, a status instead of a code.
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
        return Refusal(
            message=_clean(error.get("message")) or _detail(error.get("detail")),
            type=_clean(error.get("type")),
            param=_clean(error.get("param")) or None,
            code=_clean(error.get("code")) or _clean(error.get("http_status_code")) or None,
        )


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
