"""vLLM, and what the other engines that serve open models have in common with it: whether to think is the template's."""

from collections.abc import Mapping
from typing import ClassVar

from gateway.call import Call
from gateway.dialects.openai import OpenAI
from gateway.dialects.thinking import Thinking


class VLLM(OpenAI):
    """Health is asked beside `/v1`, not in it, and costs nothing."""

    health: str = "/../health"
    checked: ClassVar[bool] = True
    provider: ClassVar[str] = "vllm"
    # It refuses what its queue has no room for, and all that comes while it changes its size.
    busy: ClassVar[tuple[str, ...]] = ("currently busy", "backlog limit", "currently scaling")
    codes: ClassVar[Mapping[str, str]] = {
        "maximum context length": "context_length_exceeded",
        "NotFoundErrorThe model": "model_not_found",
    }

    def changes(self, call: Call, model: str) -> dict[str, bytes]:
        """As OpenAI's, and enable_thinking where the chat template looks for it."""
        changes = super().changes(call, model)
        if call.kind == "chat":
            changes |= Thinking.of(call.body).in_kwargs()
        return changes
