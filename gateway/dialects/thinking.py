"""How a caller says whether a Qwen model is to think before it answers, which it may do in either of two places.

`enable_thinking` itself, which is DashScope's way, or the same within `chat_template_kwargs`, which is that of the
engines that serve open models. Whichever a caller uses, each upstream is told in its own way; where a caller uses both,
that upstream's own place counts.
"""

from collections.abc import Mapping
from typing import NamedTuple

from gateway.wire.patch import GONE, changed, disguised, find

_SWITCH = "enable_thinking"
_WRITTEN = _SWITCH.encode()
_KWARGS = "chat_template_kwargs"
_UNSAID = (b"", b"null")


class Thinking(NamedTuple):
    """What is said, as it is written; empty where nothing is. `kwargs`: all of chat_template_kwargs."""

    own: bytes = b""
    kept: bytes = b""
    kwargs: bytes = b""

    @classmethod
    def of(cls, body: bytes) -> "Thinking":
        """What a body says."""
        if _WRITTEN not in body and not disguised(body):  # as in nearly all
            return _NOTHING
        said = find(body, _SWITCH, _KWARGS)
        kwargs = said.get(_KWARGS, b"")
        kept = find(kwargs, _SWITCH) if kwargs.startswith(b"{") else {}
        return cls(_told(said), _told(kept), kwargs)

    @property
    def wanted(self) -> bytes:
        """What is said to DashScope."""
        return self.own or self.kept

    def at_top(self) -> Mapping[str, bytes]:
        """What changes in a body so that it says it in DashScope's way."""
        if not self.kept:
            return {}
        rest = changed(self.kwargs, {_SWITCH: GONE})
        kwargs = {_KWARGS: GONE if rest.strip(b"{} \t\r\n") == b"" else rest}
        return kwargs if self.own else {**kwargs, _SWITCH: self.kept}

    def in_kwargs(self) -> Mapping[str, bytes]:
        """What changes in a body so that it says it in the engines' way."""
        if not self.own or (self.kwargs not in _UNSAID and not self.kwargs.startswith(b"{")):
            return {}
        if self.kept:
            return {_SWITCH: GONE}
        kwargs = b"{}" if self.kwargs in _UNSAID else self.kwargs
        return {_SWITCH: GONE, _KWARGS: changed(kwargs, {_SWITCH: self.own})}


_NOTHING = Thinking()


def _told(members: Mapping[str, bytes]) -> bytes:
    value = members.get(_SWITCH, b"")
    return b"" if value in _UNSAID else value
