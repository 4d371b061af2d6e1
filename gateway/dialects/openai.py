"""OpenAI's own tongue, and that of everything that speaks it unchanged: the hub that the other dialects differ from."""

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
_LONGEST_MESSAGE = 2000


class OpenAI:
    """The body goes as it came, but for the model's name and the wish for usage at the end of a stream."""

    def path(self, kind: Kind) -> str:
        """Where calls of `kind` go."""
        return _PATHS[kind]

    def headers(self, api_key: str | None) -> list[tuple[str, str]]:
        """The key as a bearer token."""
        return [] if api_key is None else [("authorization", f"Bearer {api_key}")]

    def encode(self, call: Call, model: str) -> bytes:
        """The original bytes, patched where they must be."""
        return chat.patched(
            call,
            model=None if model == call.model else model,
            include_usage=call.stream and not call.wants_usage,
        )

    def refusal(self, body: bytes) -> Refusal:
        """`{"error": {...}}` as OpenAI has it; also `{"error": "text"}`, a flat object and `{"detail": ...}`."""
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            return Refusal()
        error = answer.get("error", answer) if isinstance(answer, dict) else answer
        if isinstance(error, str):
            return Refusal(message=_clean(error))
        if not isinstance(error, dict):
            return Refusal()
        return Refusal(
            message=_clean(error.get("message") or error.get("detail")),
            type=_clean(error.get("type")),
            param=_clean(error.get("param")) or None,
            code=_clean(error.get("code")) or None,
        )


def _clean(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value[:_LONGEST_MESSAGE] if isinstance(value, str) else ""
