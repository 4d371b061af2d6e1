"""Whatever a call waits for when it is cut off, nothing that it borrowed stays: no place, no connection, no turn, no probe."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.errors import ShuttingDown
from gateway.tasks import spawn
from tests.support.client import Caller, rounds
from tests.support.clock import virtual_time
from tests.support.stage import (
    DONE,
    ROLE,
    STREAM_HEAD,
    Cast,
    answering,
    chat,
    delta,
    frame,
    refused,
    request,
    served,
    staged_many,
)
from tests.support.upstream import Peer, Script, blackhole, send, wait_closed

anyio_backend = virtual_time

HEAD = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
ONE_AT_ONCE = {"limit": 1, "queue": 9, "wait": 60}
BACKOFF: dict[str, Any] = {"chance": 0.9, "retry": {"base": 8}}
HEDGED = {"m": {"targets": [{"upstream": "up"}], "hedge": {"after": 2}}}


def hanging(*sent: bytes, stream: bool = False) -> Script:
    """So much of an answer, and then nothing until the gateway has hung up; after that, all is well."""

    async def act(peer: Peer) -> None:
        await send(*sent)(peer)
        await wait_closed()(peer)

    return answering(act, served(stream))


async def asked(stage: Cast, caller: Caller) -> None:
    await stage.seen_by(1)
    await rounds(9)


async def asked_twice(stage: Cast, caller: Caller) -> None:
    await stage.seen_by(2)
    await rounds(9)


async def dialling(stage: Cast, caller: Caller) -> None:
    await until(lambda: stage.sample("gateway_upstream_inflight") == 1)
    await rounds(9)


async def backing_off(stage: Cast, caller: Caller) -> None:
    await until(lambda: any(exchange.phase == "backoff" for exchange in stage.gateway.api.open))


async def racing(stage: Cast, caller: Caller) -> None:
    await asyncio.sleep(2.5)
    assert stage.seen == {"up": [1, 1]}


async def pinged(stage: Cast, caller: Caller) -> None:
    await caller.read_until(b": ping\n\n")


async def reading(stage: Cast, caller: Caller) -> None:
    await caller.read_until(delta("a"))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it, but not for the clock."""
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it does not come")


@dataclass(frozen=True)
class Place:
    """An await of the hot path: how it is reached, and what is recorded of a caller who leaves there."""

    scripts: Callable[[bool], list[Script]]
    reached: Callable[[Cast, Caller], Awaitable[None]] = asked
    phase: str = "upstream"
    attempts: int = 1
    sections: Mapping[str, Any] = field(default_factory=dict)


FAILING = refused("500 Oops")
EITHER: dict[str, Place] = {
    "head": Place(lambda stream: [hanging(stream=stream)]),
    "half a head": Place(lambda stream: [hanging(b"HTTP/1.1 200 OK\r\nco", stream=stream)]),
    "body": Place(lambda stream: [hanging(HEAD % b"200 OK", stream=stream)]),
    "body of a refusal": Place(lambda stream: [hanging(HEAD % b"500 Oops", stream=stream)]),
    "second attempt": Place(
        lambda stream: [answering(FAILING, served(stream)), hanging(stream=stream)], asked_twice, attempts=2
    ),
    "backoff": Place(lambda stream: [answering(FAILING, served(stream))], backing_off, "backoff", sections=BACKOFF),
    "before a hedge": Place(
        lambda stream: [hanging(stream=stream), answering(served(stream))], sections={"models": HEDGED}
    ),
    "race": Place(
        lambda stream: [hanging(stream=stream), hanging(stream=stream)],
        racing,
        attempts=2,
        sections={"models": HEDGED},
    ),
}
STREAMED: dict[str, Place] = {
    "events": Place(lambda _: [hanging(STREAM_HEAD, stream=True)]),
    "events after a comment": Place(lambda _: [hanging(STREAM_HEAD, frame(b": hi\n\n"), stream=True)]),
    "events after the role": Place(lambda _: [hanging(STREAM_HEAD, frame(ROLE), stream=True)]),
    "head, pinged": Place(lambda _: [hanging(stream=True)], pinged, "streaming"),
    "backoff, pinged": Place(
        lambda _: [answering(refused("429 Slow", "retry-after: 5"), served(stream=True))],
        pinged,
        "streaming",
        sections={"timeouts": {"ping": 1}},
    ),
    "relay": Place(lambda _: [hanging(STREAM_HEAD, frame(ROLE + delta("a")), stream=True)], reading, "streaming"),
}
ALL = [
    pytest.param(stream, place, id=f"{'stream' if stream else 'plain'}-{name}")
    for stream, places in ((False, EITHER), (True, EITHER | STREAMED))
    for name, place in places.items()
]


async def assert_nothing_stays(stage: Cast) -> None:
    """No attempt, no turn and no connection is left that a call had, and who comes next is served."""
    await until(lambda: not stage.gateway.api.open)
    await stage.settled()
    assert stage.sample("gateway_upstream_inflight") == 0
    assert stage.sample("gateway_upstream_queued") == 0
    begun = sum(line["attempts"] for line in stage.records.lines)
    assert stage.attempts() == begun


async def assert_hung_up(stage: Cast) -> None:
    """No upstream is left working for nobody: what is still open is idle."""
    idle = sum(pool.idle for up in stage.gateway.fleet.upstreams.values() for pool in up.transport.pools.values())  # type: ignore[attr-defined]
    replicas = [one for ones in stage.replicas.values() for one in ones if one is not None]
    await until(lambda: sum(replica.open_connections for replica in replicas) == idle)


@pytest.mark.parametrize(("stream", "place"), ALL)
@pytest.mark.parametrize("leave", [Caller.close, Caller.reset], ids=["close", "reset"])
async def test_a_caller_may_leave_anywhere(stream: bool, place: Place, leave: Callable[[Caller], None]) -> None:
    async with staged_many({"up": place.scripts(stream)}, **place.sections) as stage:
        async with await stage.caller() as caller:
            await caller.send(request(chat(stream=stream)))
            await place.reached(stage, caller)
            leave(caller)
            line = await stage.records.request()

        assert (line["outcome"], line["end_reason"]) == ("abandoned", "caller_left")
        assert line["status"] == (200 if place.phase == "streaming" else 499)
        assert line["attempts"] == place.attempts
        assert stage.sample("gateway_client_disconnects_total", phase=place.phase) == 1
        assert stage.sample("gateway_client_disconnects_total") == 1
        await assert_nothing_stays(stage)
        await assert_hung_up(stage)
        assert {stage.state(replica=number) for number in range(len(stage.seen["up"]))} <= {"available", "cooling"}
        assert (await stage.ask(chat(stream=stream))).status == 200


@pytest.mark.parametrize(("stream", "place"), ALL)
async def test_a_drain_may_end_anywhere(stream: bool, place: Place) -> None:
    async with staged_many({"up": place.scripts(stream)}, **place.sections) as stage:
        async with await stage.caller() as caller:
            await caller.send(request(chat(stream=stream)))
            await place.reached(stage, caller)
            for exchange in stage.gateway.api.open:
                exchange.interrupt(ShuttingDown("bye"))
            line = await stage.records.request()
            if place.phase == "streaming":
                assert b'"code":"server_shutting_down"' in await caller.read_until(b"0\r\n\r\n")
            else:
                assert (await caller.response()).error["code"] == "server_shutting_down"

        assert (line["outcome"], line["end_reason"]) == ("overloaded", "server_shutting_down")
        assert stage.sample("gateway_client_disconnects_total") == 0
        await assert_nothing_stays(stage)
        await assert_hung_up(stage)


@pytest.mark.parametrize("leave", [Caller.close, Caller.reset], ids=["close", "reset"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_caller_may_leave_while_a_connection_is_made(stream: bool, leave: Callable[[Caller], None]) -> None:
    with blackhole() as url:
        upstreams = {"up": {"urls": [f"{url}/v1"]}}
        async with staged_many({"up": [answering(served())]}, upstreams=upstreams) as stage:
            async with await stage.caller() as caller:
                await caller.send(request(chat(stream=stream)))
                await dialling(stage, caller)
                leave(caller)
                line = await stage.records.request()

            assert (line["status"], line["end_reason"], line["attempts"]) == (499, "caller_left", 1)
            assert stage.sample("gateway_client_disconnects_total", phase="upstream") == 1
            await assert_nothing_stays(stage)
            assert stage.state() == "available"


async def test_a_caller_may_leave_while_the_end_of_the_body_is_waited_for_after_all_was_said() -> None:
    async with staged_many({"up": [hanging(STREAM_HEAD, frame(delta("a") + DONE), stream=True)]}) as stage:
        async with await stage.caller() as caller:
            await caller.send(request(chat(stream=True)))
            await caller.read_until(DONE)
        await asyncio.sleep(1)
        line = await stage.records.request()

        assert (line["outcome"], line["status"]) == ("served", 200)
        assert stage.sample("gateway_client_disconnects_total") == 0
        await assert_nothing_stays(stage)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_drain_may_end_in_the_queue(stream: bool) -> None:
    upstreams = {"up": {"concurrency": ONE_AT_ONCE}}
    async with staged_many({"up": [hanging(stream=stream)]}, upstreams=upstreams) as stage:
        async with await stage.caller() as first, await stage.caller() as second:
            for caller in (first, second):
                await caller.send(request(chat(stream=stream)))
            await stage.seen_by(1)
            await until(lambda: stage.sample("gateway_upstream_queued") == 1)
            for exchange in list(stage.gateway.api.open):
                exchange.interrupt(ShuttingDown("bye"))
            for caller in (first, second):
                assert (await caller.response()).error["code"] == "server_shutting_down"

        await assert_nothing_stays(stage)
        assert stage.seen == {"up": [1]}


# At whatever step of the loop.


@contextlib.asynccontextmanager
async def limited(script: Callable[[], Script]) -> AsyncIterator[Cast]:
    """Two replicas with one place each, that follow the script; they are never out."""
    sections: dict[str, Any] = {
        "upstreams": {"up": {"concurrency": ONE_AT_ONCE}},
        "breaker": {"failures": 1000, "served": 0},
        "retry": {"reserve": 1000},
        "models": {"m": {"targets": [{"upstream": "up"}], "hedge": {"after": 0.2}}},
    }
    async with staged_many({"up": [script(), script()]}, chance=0.0, **sections) as stage:
        yield stage


def troubled(stream: bool) -> Script:
    """Every sort of answer in turn, and in every turn one that is served."""
    slow = [refused("429 Slow", "retry-after: 0.3"), refused("500 Oops"), send(b"nonsense\r\n\r\n"), served(stream)]
    return answering(*slow * 1000)


async def leave_after(stage: Cast, steps: int, stream: bool, *, drain: bool = False) -> None:
    """Ask, and leave (or be sent away) so many steps later; every third of them lets the clock go on."""
    async with await stage.caller() as caller:
        await caller.send(request(chat(stream=stream)))
        for step in range(steps):
            await asyncio.sleep(0.05 if step % 3 == 2 else 0)
        for exchange in [exchange for exchange in stage.gateway.api.open if drain]:
            exchange.interrupt(ShuttingDown("bye"))


@pytest.mark.parametrize("drain", [False, True], ids=["leave", "drain"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_caller_may_leave_at_any_step_and_nothing_is_lost(stream: bool, drain: bool) -> None:
    async with limited(lambda: troubled(stream)) as stage:
        for steps in range(30):
            await leave_after(stage, steps, stream, drain=drain)
            await assert_nothing_stays(stage)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_whoever_waits_behind_one_that_leaves_at_any_step_gets_the_place(stream: bool) -> None:
    async with limited(lambda: answering(served(stream))) as stage:
        for steps in range(16):
            leaving = [spawn(leave_after(stage, steps + number, stream), name="leaving") for number in range(4)]
            await rounds(steps // 4)
            staying = [spawn(stage.ask(chat(stream=stream)), name="staying") for _ in range(4)]
            responses = await asyncio.gather(*staying)
            await asyncio.gather(*leaving)

            assert {response.status for response in responses} == {200}
            await assert_nothing_stays(stage)


@pytest.mark.parametrize("way", ["leave", "drain"])
async def test_a_turn_that_comes_in_the_moment_of_leaving_goes_to_the_next(way: str) -> None:
    for steps in range(12):
        go_on = asyncio.Event()

        async def answer(peer: Peer, go_on: asyncio.Event = go_on) -> None:
            await go_on.wait()
            await served()(peer)

        upstreams = {"up": {"concurrency": ONE_AT_ONCE}}
        async with staged_many({"up": [answering(answer, served())]}, upstreams=upstreams) as stage:
            first = spawn(stage.ask(chat()), name="first")
            await stage.seen_by(1)
            async with await stage.caller() as second:
                await second.send(request(chat(), x_request_id="second"))
                await until(lambda stage=stage: stage.sample("gateway_upstream_queued") == 1)  # type: ignore[misc]
                third = spawn(stage.ask(chat()), name="third")
                await until(lambda stage=stage: stage.sample("gateway_upstream_queued") == 2)  # type: ignore[misc]
                go_on.set()
                await rounds(steps)
                if way == "leave":
                    second.close()
                for exchange in [
                    one for one in stage.gateway.api.open if one.request_id == "second" and way == "drain"
                ]:
                    exchange.interrupt(ShuttingDown("bye"))
                assert {(await first).status, (await third).status} == {200}
            await assert_nothing_stays(stage)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_of_two_that_speak_in_the_same_moment_one_is_served_and_the_other_is_given_up(stream: bool) -> None:
    for lead in range(-8, 9):
        go_on = asyncio.Event()

        def late(steps: int, go_on: asyncio.Event = go_on) -> Script:
            async def act(peer: Peer) -> None:
                await go_on.wait()
                await rounds(steps)
                await served(stream)(peer)

            return answering(act)

        async with staged_many({"up": [late(max(0, lead)), late(max(0, -lead))]}, models=HEDGED) as stage:
            asking = spawn(stage.ask(chat(stream=stream)), name="asking")
            await asyncio.sleep(2.5)
            go_on.set()
            response = await asking

            assert (response.status, response.headers["x-gateway-attempts"]) == (200, "2")
            assert response.body.count(b"hello") == 1
            await assert_nothing_stays(stage)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_probe_may_be_cut_off_at_any_step_and_the_next_call_is_the_probe(stream: bool) -> None:
    sections: dict[str, Any] = {"breaker": {"failures": 1, "ejection": 1}, "retry": {"attempts": 1}}
    for steps in range(20):
        script = answering(refused("500 Oops"), served(stream))
        async with staged_many({"up": [script]}, **sections) as stage:
            await stage.ask(chat())
            await asyncio.sleep(2)
            assert stage.state() == "probing"
            await leave_after(stage, steps, stream)
            await assert_nothing_stays(stage)

            assert (await stage.ask(chat(stream=stream))).status == 200
            assert stage.state() == "available"
