"""The words that every room shares: what is asked, by whom, what came of it.

Plain records with no behaviour beyond their own arithmetic. They must not know HTTP, metrics or any upstream.
"""

import asyncio
from collections.abc import Callable
from math import inf
from typing import Literal, NamedTuple

import msgspec

from gateway.errors import GatewayError

Kind = Literal["chat", "completions", "embeddings", "models", "unknown"]
Phase = Literal["body", "queue", "upstream", "backoff", "streaming"]
Waited = Literal["queue", "pool", "connect"]


class Principal(msgspec.Struct, frozen=True):
    """Whose request it is. `models` are the names that this key may use; `*` ends a prefix."""

    name: str
    models: tuple[str, ...] = ("*",)


class Usage(msgspec.Struct, gc=False):
    """Tokens, as the upstream counted them. `cached` is part of `input`, `reasoning` is part of `output`."""

    input: int = 0
    output: int = 0
    cached: int = 0
    reasoning: int = 0


class Call(msgspec.Struct):
    """A request as the gateway understands it: the few members that it decides on, and the original bytes.

    `wants_usage`: the caller itself asked for a usage event (`stream_options.include_usage`).
    `model_at`, `options_at`: where the values of model and stream_options stand in the body, in bytes.
    `prompt_chars`: characters of text in messages, prompt or input. `choices`: answers asked for.
    """

    kind: Kind
    model: str
    body: bytes
    model_at: tuple[int, int]
    options_at: tuple[int, int] | None = None
    stream: bool = False
    wants_usage: bool = False
    prompt_chars: int = 0
    choices: int = 1


class Try(NamedTuple):
    """One attempt that has ended."""

    upstream: str
    replica: str
    outcome: str


class Wait(NamedTuple):
    """What had to be waited for before a request could go out: a place in the `queue`, a connection of the `pool`, a new one."""

    what: Waited
    upstream: str
    seconds: float


class Exchange:
    """The one record of one call: every room writes what it learns, and it is told to log and metrics once, at the end.

    Times are the clock's seconds (monotonic), or None where that moment never came. Labels hold configured names only.
    """

    __slots__ = (
        "attempts",
        "committed_at",
        "content_at",
        "deadline",
        "end_reason",
        "ended_at",
        "estimated",
        "events",
        "first_byte_by",
        "gave_up",
        "hedge",
        "interruption",
        "key_name",
        "kind",
        "last_event_at",
        "longest_gap",
        "model",
        "outcome",
        "phase",
        "prompt_chars",
        "received_at",
        "relayed_at",
        "replica",
        "request_id",
        "retries",
        "sent_at",
        "sought_at",
        "started_at",
        "status",
        "stream",
        "task",
        "tries",
        "upstream",
        "upstream_model",
        "upstream_seconds",
        "usage",
        "waits",
    )

    def __init__(self, request_id: str, kind: Kind, now: float) -> None:  # noqa: PLR0915  # fields, and nothing else
        self.request_id = request_id
        self.kind: Kind = kind
        self.key_name = ""
        self.model = "unknown"  # the configured name
        self.upstream = ""
        self.upstream_model = ""
        self.replica = ""
        self.attempts = 0  # begun
        self.tries: tuple[Try, ...] = ()  # ended
        # The upstream that failed, and how, for each further attempt that was granted; a hedge is none of them.
        self.retries: tuple[tuple[str, str], ...] = ()
        self.waits: tuple[Wait, ...] = ()  # of all attempts, in vain or not
        self.gave_up = ""  # why it was not tried once more
        self.hedge = ""  # which of two attempts side by side was served: first, second or neither
        self.sought_at = 0.0  # moments of the loop's clock: an upstream was first sought
        self.deadline = inf  # until when the caller waits for all of the answer
        self.first_byte_by = inf  # and for its first byte
        self.stream = False
        self.prompt_chars = 0
        self.phase: Phase = "body"
        self.started_at = now
        self.received_at: float | None = None  # the whole request is here
        self.sent_at: float | None = None  # the attempt that is told of went out
        self.committed_at: float | None = None  # the first event, or the whole plain reply, is here
        self.relayed_at: float | None = None  # that was passed on
        self.content_at: float | None = None  # the first event with content is here
        self.last_event_at: float | None = None
        self.longest_gap = 0.0  # seconds between two events
        self.ended_at = now
        self.upstream_seconds = 0.0  # spent waiting for upstreams, all attempts
        self.usage: Usage | None = None
        self.estimated = False  # usage is a guess of ours, because the upstream did not come to say
        self.events = 0
        self.status = 0  # of the answer's head; 499 where the caller left before it
        self.outcome = ""
        self.end_reason = ""
        self.interruption: GatewayError | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def overhead(self) -> float | None:
        """Seconds that the gateway itself added before the reply (of a stream, its first event) went out."""
        if self.received_at is None or self.relayed_at is None:
            return None
        return max(0.0, self.relayed_at - self.received_at - self.upstream_seconds)

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from receipt to the first event with content; None for plain replies."""
        return None if self.content_at is None or not self.stream else self.content_at - self.started_at

    def enter(self, phase: Phase) -> None:
        """What is waited for now. A stream that has been promised stays one, whatever is tried behind it."""
        if self.phase != "streaming":
            self.phase = phase

    def interrupt(self, reason: GatewayError) -> None:
        """End the call from outside: its task is cancelled at whatever it awaits, and finds the reason here.

        The first reason stands; a caller that has left does not care for a second one.
        """
        if self.interruption is None and self.task is not None:
            self.interruption = reason
            self.task.cancel()


Clock = Callable[[], float]
