"""What each kind of upstream speaks: one file a kind, and this list of them.

A dialect is pure. It turns a Call into what its upstream wants, and what its upstream says into OpenAI's words; it does
not judge (outcome.py does) and does no I/O. Nowhere else is there an `if kind ==`.
"""

from typing import ClassVar, Protocol

from gateway.call import Call, Kind
from gateway.dialects.openai import OpenAI
from gateway.outcome import Refusal


class Dialect(Protocol):
    """The seam that a new kind of upstream fills.

    `health`: what to GET to learn whether an upstream is well, relative to its URL; it costs nothing and runs no model.
    `checked`: whether replicas are asked that unless the config says otherwise; not where an upstream may charge for it.
    """

    health: ClassVar[str]
    checked: ClassVar[bool]

    def path(self, kind: Kind) -> str:
        """Where calls of `kind` go, relative to the upstream's URL."""

    def headers(self, api_key: str | None) -> list[tuple[str, str]]:
        """What every request to this upstream carries beside its content type."""

    def encode(self, call: Call, model: str) -> bytes:
        """The body to send for `call`, to the model that this upstream knows as `model`."""

    def refusal(self, body: bytes) -> Refusal:
        """An error body, whatever its shape, in OpenAI's words."""


DIALECTS: dict[str, Dialect] = {"openai": OpenAI()}
