"""An upstream gets as many calls at once as it may have; a few more wait, in order, and the rest are told at once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import orjson
import pytest

from gateway.tasks import spawn
from tests.support.client import Caller, Response
from tests.support.clock import virtual_time
from tests.support.stage import (
    DONE,
    END,
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
from tests.support.upstream import Action, Peer, Script, forever, read, send, wait_for

anyio_backend = virtual_time

STREAMING = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
ONE = {"limit": 1, "queue": 1, "wait": 1}


def now() -> float:
    return asyncio.get_running_loop().time()


def limited(*names: str, **more: Any) -> dict[str, Any]:
    """Upstreams of these names that take one call at once, and let one more wait for a second."""
    return {name: {"concurrency": ONE | more} for name in names}


def held(*gates: asyncio.Event, stream: bool = False, answer: Action | None = None) -> Script:
    """A replica that answers each request once its gate is open, and all that come after them at once."""

    def behind(gate: asyncio.Event) -> Action:
        async def act(peer: Peer) -> None:
            await wait_for(gate)(peer)
            await (answer or served(stream))(peer)

        return act

    return answering(*map(behind, gates), served(stream))


def gauge(stage: Cast, name: str, upstream: str = "up") -> float:
    return stage.sample(f"gateway_upstream_{name}", upstream=upstream)


@contextlib.asynccontextmanager
async def waiting(stage: Cast, queued: int = 1, upstream: str = "up", **members: Any) -> AsyncIterator[Caller]:
    """A caller who waits for a place, being number `queued` in the queue."""
    async with await stage.caller() as caller:
        await caller.send(request(chat(**members)))
        await until(partial(has_queued, stage, queued, upstream))
        yield caller


def has_queued(stage: Cast, number: int, upstream: str = "up") -> bool:
    return gauge(stage, "queued", upstream) == number


def has_open(stage: Cast, number: int) -> bool:
    return len(stage.gateway.api.open) == number


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it, but not for the clock."""
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it does not come")


async def assert_shed(stage: Cast, response: Response, upstream: str = "up") -> None:
    """It was told at once, and nothing was tried."""
    assert (response.status, response.error["code"]) == (503, "overloaded")
    assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("1", "1000")
    assert response.headers.get("x-gateway-attempts", "0") == "0"
    assert "x-should-retry" not in response.headers
    line = await stage.records.request()
    assert (line["outcome"], line["end_reason"], line["attempts"]) == ("overloaded", "overloaded", 0)
    assert stage.sample("gateway_sheds_total", upstream=upstream) == 1
    assert stage.sample("gateway_requests_total", upstream=upstream, status="503", outcome="overloaded") == 1


@STREAMING
async def test_the_second_waits_for_its_turn_and_the_third_is_told_at_once(stream: bool) -> None:
    go_on = asyncio.Event()
    async with staged_many({"up": [held(go_on, stream=stream)]}, upstreams=limited("up")) as stage:
        first = spawn(stage.ask(chat(stream=stream)), name="first")
        await stage.seen_by(1)
        async with waiting(stage, stream=stream) as second:
            began_at = now()
            await assert_shed(stage, await stage.ask(chat(stream=stream)))
            assert now() == began_at
            assert (stage.seen, gauge(stage, "inflight"), gauge(stage, "queued")) == ({"up": [1]}, 1, 1)

            go_on.set()
            assert (await first).status == (await second.response()).status == 200
        assert (stage.seen, gauge(stage, "queued")) == ({"up": [2]}, 0)


async def test_who_waits_is_served_in_order_and_never_more_at_once_than_may_be() -> None:
    gates = [asyncio.Event() for _ in range(5)]
    async with staged_many({"up": [held(*gates)]}, upstreams=limited("up", queue=9)) as stage:
        calls = []
        for number in range(5):
            calls.append(spawn(stage.ask(chat(seed=number)), name="call"))
            await until(partial(has_open, stage, number + 1))
        for number, gate in enumerate(gates):
            await stage.seen_by(number + 1)
            assert (gauge(stage, "inflight"), gauge(stage, "queued")) == (1, 4 - number)
            gate.set()

        assert {response.status for response in await asyncio.gather(*calls)} == {200}
        assert [orjson.loads(received.body)["seed"] for received in stage.upstream.requests] == [0, 1, 2, 3, 4]


@STREAMING
async def test_who_has_waited_for_too_long_is_told_so(stream: bool) -> None:
    async with (
        staged_many({"up": [held(asyncio.Event())]}, upstreams=limited("up", wait=1.5)) as stage,
        await stage.caller() as first,
    ):
        await first.send(request(chat()))
        await stage.seen_by(1)
        began_at = now()
        await assert_shed(stage, await stage.ask(chat(stream=stream)))

        assert now() - began_at == pytest.approx(1.5)
        assert gauge(stage, "queued") == 0


async def test_a_stream_that_was_pinged_while_it_waited_is_told_in_band() -> None:
    sections: dict[str, Any] = {"upstreams": limited("up", wait=2.5), "timeouts": {"ping": 1}}
    async with staged_many({"up": [held(asyncio.Event())]}, **sections) as stage, await stage.caller() as first:
        await first.send(request(chat()))
        await stage.seen_by(1)
        response = await stage.ask(chat(stream=True))

        assert response.status == 200
        assert response.body.startswith(b": ping\n\n" * 2 + b'data: {"error":')
        assert b'"code":"overloaded"' in response.body
        assert (await stage.records.request())["outcome"] == "overloaded"
        assert stage.sample("gateway_sheds_total", upstream="up") == 1


@STREAMING
async def test_without_a_queue_nobody_waits(stream: bool) -> None:
    async with (
        staged_many({"up": [held(asyncio.Event())]}, upstreams=limited("up", queue=0)) as stage,
        await stage.caller() as first,
    ):
        await first.send(request(chat()))
        await stage.seen_by(1)
        began_at = now()
        await assert_shed(stage, await stage.ask(chat(stream=stream)))
        assert now() == began_at


@STREAMING
async def test_a_caller_in_a_hurry_waits_no_longer_than_it_says(stream: bool) -> None:
    async with (
        staged_many({"up": [held(asyncio.Event())]}, upstreams=limited("up", wait=9)) as stage,
        await stage.caller() as first,
    ):
        await first.send(request(chat()))
        await stage.seen_by(1)
        began_at = now()
        response = await stage.ask(chat(stream=stream), x_request_timeout_ms="1500")

        assert now() - began_at == pytest.approx(1.5)
        assert (response.status, response.error["code"]) == (504, "deadline_exceeded")


@STREAMING
async def test_a_stream_has_its_place_to_its_end(stream: bool) -> None:
    go_on = asyncio.Event()
    talking: Script = [
        read(),
        send(STREAM_HEAD, frame(ROLE + delta("a"))),
        wait_for(go_on),
        send(frame(DONE), END),
        *answering(served(stream)),
    ]
    async with staged_many({"up": [talking]}, upstreams=limited("up")) as stage, await stage.caller() as first:
        await first.send(request(chat(stream=True)))
        await first.read_until(delta("a"))
        async with waiting(stage, stream=stream) as second:
            assert stage.seen == {"up": [1]}
            go_on.set()
            assert (await second.response()).status == 200
        await first.read_until(DONE)


@STREAMING
async def test_a_caller_who_leaves_mid_stream_makes_room(stream: bool) -> None:
    talking: Script = [read(), send(STREAM_HEAD, frame(ROLE + delta("a"))), *answering(served(stream))]
    async with staged_many({"up": [talking]}, upstreams=limited("up")) as stage, await stage.caller() as first:
        await first.send(request(chat(stream=True)))
        await first.read_until(delta("a"))
        async with waiting(stage, stream=stream) as second:
            first.close()
            await until(partial(has_queued, stage, 0))
            assert gauge(stage, "inflight") == 1
            second.close()


async def test_a_caller_who_leaves_the_queue_makes_room_in_it() -> None:
    go_on = asyncio.Event()
    async with staged_many({"up": [held(go_on)]}, upstreams=limited("up")) as stage:
        first = spawn(stage.ask(chat()), name="first")
        await stage.seen_by(1)
        async with waiting(stage) as second:
            second.close()
            line = await stage.records.request()
            assert (line["status"], line["end_reason"], line["attempts"]) == (499, "caller_left", 0)
            assert stage.sample("gateway_client_disconnects_total", phase="queue") == 1
            assert gauge(stage, "queued") == 0
        async with waiting(stage, seed=3) as third:
            go_on.set()
            assert (await first).status == (await third.response()).status == 200
        assert [orjson.loads(received.body).get("seed") for received in stage.upstream.requests] == [None, 3]


# Nobody else notices.


async def test_an_upstream_that_is_full_holds_up_no_other() -> None:
    models = {name: {"targets": [{"upstream": name}]} for name in ("full", "free")}
    scripts = {"full": [held(asyncio.Event())], "free": [answering(served())]}
    async with staged_many(scripts, models=models, upstreams=limited("full")) as stage, await stage.caller() as first:
        await first.send(request(chat(model="full")))
        await stage.seen_by(1)
        async with waiting(stage, upstream="full", model="full"):
            await assert_shed(stage, await stage.ask(chat(model="full")), upstream="full")
            began_at = now()
            assert {response.status for response in await stage.times(20, model="free")} == {200}
            assert now() == began_at


@STREAMING
async def test_a_full_replica_is_passed_over_for_another_and_a_full_upstream_for_the_next(stream: bool) -> None:
    scripts = {
        "a": [held(asyncio.Event()), held(asyncio.Event())],
        "b": [held(asyncio.Event())],
        "c": [answering(served(stream))],
    }
    models = {
        "m": {"targets": [{"upstream": "a"}, {"upstream": "b"}], "fallbacks": ["spare"]},
        "spare": {"targets": [{"upstream": "c"}]},
    }
    sections: dict[str, Any] = {"models": models, "upstreams": limited("a", "b")}
    async with staged_many(scripts, **sections) as stage, contextlib.AsyncExitStack() as callers:
        for number in range(3):
            caller = await callers.enter_async_context(await stage.caller())
            await caller.send(request(chat()))
            await stage.seen_by(number + 1)
        assert stage.seen == {"a": [1, 1], "b": [1], "c": [0]}
        response = await stage.ask(chat(stream=stream))

        assert (response.status, response.headers["x-gateway-upstream"]) == (200, "c")
        assert response.headers["x-gateway-attempts"] == "1"


async def test_who_waits_is_given_the_first_replica_that_becomes_free() -> None:
    gates = [asyncio.Event(), asyncio.Event()]
    async with staged_many({"up": [held(gate) for gate in gates]}, upstreams=limited("up")) as stage:
        calls = []
        for number in range(2):
            calls.append(spawn(stage.ask(chat()), name="call"))
            await stage.seen_by(number + 1)
        async with waiting(stage) as third:
            gates[1].set()
            assert (await third.response()).status == 200
            assert stage.seen == {"up": [1, 2]}
            gates[0].set()
        await asyncio.gather(*calls)


# With failures.


@STREAMING
async def test_a_failure_that_finds_everybody_else_full_is_told_as_the_failure_that_it_was(stream: bool) -> None:
    scripts = {"a": [answering(refused("500 Oops"))], "b": [held(asyncio.Event())]}
    models = {
        "m": {"targets": [{"upstream": "a"}], "fallbacks": ["n"]},
        "n": {"targets": [{"upstream": "b"}]},
    }
    async with staged_many(scripts, models=models, upstreams=limited("b")) as stage, await stage.caller() as first:
        await first.send(request(chat(model="n")))
        await stage.seen_by(1)
        response = await stage.ask(chat(stream=stream))

        assert (response.status, response.error["code"]) == (502, "upstream_error")
        assert response.headers["x-should-retry"] == "false"
        assert stage.sample("gateway_sheds_total") == 0


async def test_a_call_that_failed_may_wait_for_a_place_elsewhere() -> None:
    go_on = asyncio.Event()
    scripts = {"a": [answering(refused("500 Oops"))], "b": [held(go_on)]}
    models = {
        "m": {"targets": [{"upstream": "a"}], "fallbacks": ["n"]},
        "n": {"targets": [{"upstream": "b"}]},
    }
    async with staged_many(scripts, models=models, upstreams=limited("b")) as stage:
        first = spawn(stage.ask(chat(model="n")), name="first")
        await stage.seen_by(1)
        async with waiting(stage, upstream="b") as second:
            assert stage.seen == {"a": [1], "b": [1]}
            go_on.set()
            assert (await first).status == 200
            assert (await second.response()).headers["x-gateway-upstream"] == "b"


async def test_a_replica_that_is_out_is_not_given_to_those_who_wait_for_a_good_one() -> None:
    fail, go_on = asyncio.Event(), asyncio.Event()
    failing = held(fail, answer=refused("500 Oops"))
    breaker = {"failures": 1}
    async with staged_many({"up": [failing, held(go_on)]}, breaker=breaker, upstreams=limited("up", queue=9)) as stage:
        calls = []
        for number in range(2):
            calls.append(spawn(stage.ask(chat()), name="call"))
            await stage.seen_by(number + 1)
        for number in range(2):
            calls.append(spawn(stage.ask(chat()), name="call"))
            await until(partial(has_queued, stage, number + 1))
        fail.set()
        await until(lambda: stage.state() == "ejected")
        await until(partial(has_queued, stage, 3))
        go_on.set()

        assert {response.status for response in await asyncio.gather(*calls)} == {200}
        assert stage.seen == {"up": [1, 4]}


async def test_the_only_replica_is_given_to_those_who_wait_even_if_it_is_out() -> None:
    fail = asyncio.Event()
    script = held(fail, answer=refused("500 Oops"))
    sections: dict[str, Any] = {"breaker": {"failures": 1}, "retry": {"attempts": 1}}
    async with staged_many({"up": [script]}, upstreams=limited("up"), **sections) as stage:
        first = spawn(stage.ask(chat()), name="first")
        await stage.seen_by(1)
        async with waiting(stage) as second:
            fail.set()
            assert (await first).status == 502
            assert (await second.response()).status == 200


async def test_a_limit_is_kept_in_a_storm_in_which_callers_come_and_fail_and_leave() -> None:
    busiest = 0

    async def answer(peer: Peer) -> None:
        nonlocal busiest
        busiest = max(busiest, *(replica.inflight for replica in stage.gateway.fleet.upstreams["up"].replicas))
        await asyncio.sleep(0.25)
        await (refused("500 Oops") if len(peer.upstream.requests) % 3 == 0 else served())(peer)

    async def call(number: int) -> int:
        await asyncio.sleep(number * 0.05)
        async with await stage.caller() as caller:
            await caller.send(request(chat(stream=number % 2 == 1)))
            if number % 5 == 0:
                await asyncio.sleep(0.3)
                return 0
            return (await caller.response()).status

    scripts: dict[str, list[Script]] = {"up": [[forever(read(), answer)] for _ in range(2)]}
    async with staged_many(scripts, upstreams=limited("up", limit=3, queue=5)) as stage:
        statuses = await asyncio.gather(*map(call, range(100)))

        assert busiest == 3
        assert set(statuses) <= {0, 200, 502, 503}
        assert statuses.count(200) > 40
        await stage.settled()
        await until(partial(has_open, stage, 0))
        assert (gauge(stage, "inflight"), gauge(stage, "queued")) == (0, 0)
