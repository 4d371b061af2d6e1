"""Calls as they are planned, the upstream that does to each what its plan says, and what it knows of that afterwards.

All moments are whole sixteenths of a second of virtual time, so that sums of them are exact.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from gateway.call import Usage
from tests.support.stage import DONE, END, JSON, ROLE, STREAM_HEAD, delta, event, frame, refused
from tests.support.upstream import Peer, close, read, reply, reset, send, wait_closed

Ends = Literal[
    "served",
    "500",
    "503",
    "429",
    "400",
    "401",
    "reset",
    "stalled",
    "truncated",
    "early_cut",
    "cut",
    "silent",
    "error_event",
]
STATUSES = {
    "500": "500 Internal Server Error",
    "503": "503 Service Unavailable",
    "429": "429 Too Many Requests",
    "400": "400 Bad Request",
    "401": "401 Unauthorized",
}


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass(frozen=True)
class Deed:
    """What the upstream does to one attempt: it thinks, says something, perhaps in pieces, and ends.

    `pauses`: seconds before each piece of content, and before the end.
    """

    ends: Ends = "served"
    think: float = 0.0
    pauses: tuple[float, ...] = ()
    usage: Usage | None = None


@dataclass
class Done:
    """What the upstream has done, and when. `events`: the moment of each, and whether it holds content."""

    upstream: str
    replica: str
    deed: Deed
    received_at: float
    events: list[tuple[float, bool]] = field(default_factory=list)
    ended_at: float = 0.0  # it had said all that it would, or saw that the gateway had left


@dataclass(frozen=True)
class Plan:
    """One call: when it comes, what it asks for, what is done to it, and whether its caller leaves or sets a deadline.

    `fault`: what is wrong with the request itself, so that no upstream ever sees it.
    """

    number: int
    start: float
    model: str
    deeds: tuple[Deed, ...] = ()
    stream: bool = False
    kind: Literal["chat", "embeddings"] = "chat"
    prompt: int = 0  # characters
    leaves: float | None = None
    deadline: float | None = None
    fault: Literal["", "model", "key", "json", "method", "body"] = ""
    hedged: bool = False
    waits: tuple[tuple[str, float], ...] = ()  # what for, and how long, before its first attempt
    shed: bool = False

    @property
    def request_id(self) -> str:
        return f"truth-{self.number}"

    @property
    def route(self) -> str:
        """The name in the config."""
        return f"{self.model.partition('-')[0]}-*"


class Ledger:
    """What the upstreams know: what they did to each attempt, by the call's number, in the order that they came."""

    def __init__(self, plans: list[Plan]) -> None:
        self.plans = {plan.number: plan for plan in plans}
        self.done: dict[int, list[Done]] = {plan.number: [] for plan in plans}

    def script(self, upstream: str) -> list[Any]:
        """One replica."""

        async def act(peer: Peer) -> None:
            while not peer.gone:
                await read()(peer)
                request = peer.upstream.requests[-1]
                _, number, *attempt = (request.header("x-request-id") or "").split("-")
                deed = self.plans[int(number)].deeds[int(attempt[0]) - 1 if attempt else 0]
                path = request.path.removesuffix("/chat/completions").removesuffix("/embeddings")
                replica = f"127.0.0.1:{peer.upstream.port}{'' if path == '/v1' else path}"
                done = Done(upstream, replica, deed, now())
                self.done[int(number)].append(done)
                try:
                    await _do(deed, done, peer, stream=self.plans[int(number)].stream)
                finally:
                    done.ended_at = now()

        return [act]


async def _do(deed: Deed, done: Done, peer: Peer, *, stream: bool) -> None:
    if deed.ends == "stalled":
        await wait_closed()(peer)
        peer.gone = True
        return
    await asyncio.sleep(deed.think)
    if deed.ends == "reset":
        await reset()(peer)
    elif deed.ends in STATUSES:
        await refused(STATUSES[deed.ends])(peer)
    elif deed.ends == "truncated":
        await send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")(peer)
        await close()(peer)
    elif stream:
        await _stream(deed, done, peer)
    else:
        usage = {} if deed.usage is None else {"usage": _usage(deed.usage)}
        message = {"role": "assistant", "content": "yes"}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        await reply(orjson.dumps({"id": "c", "choices": choices, **usage}), headers=[JSON])(peer)


async def _stream(deed: Deed, done: Done, peer: Peer) -> None:
    async def say(piece: bytes, *, content: bool = False) -> None:
        done.events.append((now(), content))
        await send(frame(piece))(peer)

    await send(STREAM_HEAD)(peer)
    await say(ROLE)
    if deed.ends == "early_cut":
        await close()(peer)
        return
    for pause in deed.pauses[:-1]:
        await asyncio.sleep(pause)
        await say(delta("word"), content=True)
    await asyncio.sleep(deed.pauses[-1])
    if deed.ends == "cut":
        await close()(peer)
    elif deed.ends == "silent":
        await wait_closed()(peer)
        peer.gone = True
    elif deed.ends == "error_event":
        await send(frame(event({"error": {"message": "planted-words", "type": "server_error", "code": None}})), END)(
            peer
        )
    else:
        await say(delta(finish="stop"))
        if deed.usage is not None:
            await say(event({"id": "c", "choices": [], "usage": _usage(deed.usage)}))
        await send(frame(DONE), END)(peer)


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }
