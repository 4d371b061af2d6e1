"""The W3C Trace Context headers: what of a caller's is well formed, and how one's own are written.

A `traceparent` that is not well formed is as none, and its `tracestate` goes with it; a `tracestate` that is not leaves the
`traceparent` alone. Baggage is nobody's business here: it may hold anything, and upstreams are not told. Must not know
spans or sampling.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

Fields = list[tuple[bytes, bytes]]

SAMPLED = 0x01
RANDOM = 0x02  # the trace's id is random in its lower half

_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]{0,200})?")
_KEY = rb"[a-z0-9][a-z0-9_*/-]{0,255}(?:@[a-z0-9][a-z0-9_*/-]{0,13})?"
_MEMBER = re.compile(rb"(%b)=[ -+\--<>-~]{0,255}[!-+\--<>-~]" % _KEY)
_MOST_MEMBERS = 32
_LONGEST_STATE = 4096  # bytes; upstreams have limits on heads too


class Context(NamedTuple):
    """A span as the next one in line is told of it. `state`: what tracing systems say to themselves, passed on as it is."""

    trace_id: int
    span_id: int
    flags: int
    state: bytes = b""

    @property
    def sampled(self) -> bool:
        """Whether whoever made it records it."""
        return bool(self.flags & SAMPLED)

    @property
    def fields(self) -> Fields:
        """The headers that tell of it."""
        return _told(b"00-%032x-%016x-%02x" % (self.trace_id, self.span_id, self.flags), self.state)


def _told(parent: bytes, state: bytes) -> Fields:
    """The headers with these values."""
    return [(b"traceparent", parent), (b"tracestate", state)] if state else [(b"traceparent", parent)]


def read(headers: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, Context] | None:
    """The caller's `traceparent`, as it came and as what it says; None where there is not exactly one that is well formed.

    Names of `headers` are in lower case.
    """
    parents: list[bytes] = []
    states: list[bytes] = []
    for name, value in headers:
        if name == b"traceparent":
            parents.append(value.strip())
        elif name == b"tracestate":
            states.append(value)
    found = _PARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == b"ff" or (version == b"00" and more is not None) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    known = int(flags, 16) & (SAMPLED | RANDOM)
    return parents[0], Context(int(trace_id, 16), int(span_id, 16), known, _state(b",".join(states)))


def _state(given: bytes) -> bytes:
    """A list that is well formed, as it came, or nothing."""
    if not given or len(given) > _LONGEST_STATE:
        return b""
    members = [member.strip(b" \t") for member in given.split(b",")]
    found = [_MEMBER.fullmatch(member) for member in members if member]
    keys = {match[1] for match in found if match is not None}
    return given.strip(b" \t") if 0 < len(found) == len(keys) <= _MOST_MEMBERS else b""


class Passed:
    """A trace that this gateway has no part in: the caller's headers go to whatever is tried, as they came."""

    __slots__ = ("fields",)

    def __init__(self, fields: Fields) -> None:
        self.fields = fields

    @classmethod
    def of(cls, headers: Iterable[tuple[bytes, bytes]]) -> "Passed | None":
        """What a caller sent, if it is well formed."""
        found = read(headers)
        return None if found is None else cls(_told(found[0], found[1].state))

    def attempt(self, _now: float, _aim: object) -> "Passed":
        """Every attempt is told the same."""
        return self

    def ended(self, _now: float, _end: object) -> None:
        """Nobody is told."""
