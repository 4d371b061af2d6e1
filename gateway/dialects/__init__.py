"""What each kind of upstream speaks: one file a kind, and this list of them.

A dialect is pure. It turns a Call into what its upstream wants, and what its upstream says into OpenAI's words; it does
not judge (outcome.py does) and does no I/O. Nowhere else is there an `if kind ==`.
"""

from collections.abc import Callable
from typing import ClassVar, Protocol

from gateway.call import Call, Kind
from gateway.dialects.engines import TGI, LlamaCpp, Ollama, SGLang
from gateway.dialects.openai import OpenAI
from gateway.dialects.qwen import Qwen
from gateway.dialects.triton import Triton
from gateway.dialects.vllm import VLLM
from gateway.kinds import UpstreamKind
from gateway.outcome import Refusal
from gateway.wire.sse import Event


class Translator(Protocol):
    """Turns one stream that is not OpenAI's into one that is. Made for each call.

    `slow_to_end`: `end` has so much to do that it is to be called on a thread of its own.
    """

    @property
    def slow_to_end(self) -> bool:
        """Asked once, when the upstream has said everything."""

    def take(self, events: list[Event]) -> list[Event]:
        """What to pass on for these events of the upstream's. An error among them is passed on in OpenAI's form."""

    def end(self) -> list[Event]:
        """What is left to say when the upstream has said everything."""


class Dialect(Protocol):
    """The seam that a new kind of upstream fills.

    `checked`: whether its replicas are asked how they are without being told to. `ailing`: the status from which their
    answer means that they are not well. `provider`: what traces call it, in the words of OpenTelemetry where they have one.
    """

    checked: ClassVar[bool]
    ailing: ClassVar[int]
    provider: ClassVar[str]

    @property
    def health(self) -> str:
        """The path, relative to the upstream's URL, of a question that costs nothing."""

    def path(self, kind: Kind, model: str) -> str | None:
        """Where calls of `kind` to `model` go, relative to the upstream's URL; None where it has nothing of that kind."""

    def headers(self, api_key: str | None) -> list[tuple[str, str]]:
        """What every request to this upstream carries beside its content type."""

    def streams(self, call: Call, model: str) -> bool:
        """Whether it is asked for a stream. Where the caller did not want one, the stream is gathered into one reply."""

    def encode(self, call: Call, model: str) -> bytes:
        """The body to send for `call`, to the model that this upstream knows as `model`.

        Raises CallerError for what this upstream can't honour.
        """

    def refusal(self, status: int, body: bytes) -> Refusal:
        """An error body, whatever its shape, in OpenAI's words; `status` is 200 where it was told within an answer."""

    def translator(self, call: Call, model: str) -> Translator | None:
        """For streams that are not OpenAI's; None where they go on byte for byte."""


DIALECTS: dict[UpstreamKind, Callable[..., Dialect]] = {
    "openai": OpenAI,
    "qwen": Qwen,
    "vllm": VLLM,
    "triton": Triton,
    "tgi": TGI,
    "sglang": SGLang,
    "llamacpp": LlamaCpp,
    "ollama": Ollama,
}
