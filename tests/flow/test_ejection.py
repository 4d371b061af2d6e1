"""Who fails is left alone for a while, comes back by one call, and is still used when there is nobody else."""

import asyncio
from typing import Any

import pytest

from tests.support.clock import virtual_time
from tests.support.stage import (
    END,
    ROLE,
    STREAM_HEAD,
    Cast,
    answering,
    chat,
    delta,
    event,
    frame,
    refused,
    request,
    served,
    staged_many,
)
from tests.support.upstream import Action, Script, close, forever, read, reset, send, wait_for

anyio_backend = virtual_time

STREAMING = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
FAILING = refused("500 Oops")
EJECTION = 27.0  # seconds: 30, and by chance a tenth less


def recovering(*after: Action) -> Script:
    """A replica that fails often enough to be ejected, and then does this."""
    return answering(*[FAILING] * 5, *(after or (served(),)))


def events(stage: Cast) -> list[tuple[str, str]]:
    """What was said of replicas, and of which upstream's."""
    return [(line["event"], line["upstream"]) for line in stage.events]


@STREAMING
async def test_five_failures_in_a_row_eject_and_no_caller_has_known(stream: bool) -> None:
    async with staged_many({"up": [recovering(), answering(served(stream))]}) as stage:
        responses = await stage.times(4, stream=stream)
        assert stage.state() == "available"
        responses += await stage.times(1, stream=stream)
        assert stage.state() == "ejected"
        assert stage.events == [
            {
                "event": "replica_ejected",
                "log_level": "warning",
                "upstream": "up",
                "replica": stage.gateway.fleet.upstreams["up"].replicas[0].name,
                "reason": "upstream_error",
            }
        ]

        responses += await stage.times(10, stream=stream)
        assert stage.seen == {"up": [5, 15]}
        assert {response.status for response in responses} == {200}
        assert [response.headers["x-gateway-attempts"] for response in responses] == ["2"] * 5 + ["1"] * 10


@STREAMING
async def test_when_its_time_is_over_one_call_goes_there_and_brings_it_back(stream: bool) -> None:
    go_on = asyncio.Event()

    async def probed(peer: Any) -> None:
        await wait_for(go_on)(peer)
        await served(stream)(peer)

    async with staged_many({"up": [recovering(probed, served(stream)), answering(served(stream))]}) as stage:
        await stage.times(5, stream=stream)
        await asyncio.sleep(EJECTION - 0.1)
        await stage.times(1, stream=stream)
        assert (stage.state(), stage.seen) == ("ejected", {"up": [5, 6]})

        await asyncio.sleep(0.2)
        assert stage.state() == "probing"
        async with await stage.caller() as caller:
            await caller.send(request(chat(stream=stream)))
            await stage.seen_by(12)
            await stage.times(3, stream=stream)
            assert (stage.state(), stage.seen) == ("probing", {"up": [6, 9]})
            go_on.set()
            assert (await caller.response()).headers["x-gateway-attempts"] == "1"
        assert stage.state() == "available"
        assert events(stage) == [("replica_ejected", "up"), ("replica_returned", "up")]


async def test_the_only_replica_of_a_target_comes_back_while_another_target_serves() -> None:
    async with staged_many({"a": [recovering()], "b": [answering(served())]}) as stage:
        await stage.times(8)
        assert stage.seen == {"a": [5], "b": [8]}
        await asyncio.sleep(EJECTION + 1)
        await stage.times(2)

        assert stage.seen == {"a": [7], "b": [8]}
        assert stage.state("a") == "available"


async def test_replicas_that_are_all_out_come_back_while_another_target_serves() -> None:
    async with staged_many({"a": [recovering(), recovering()], "b": [answering(served())]}) as stage:
        await stage.times(8)
        assert stage.state("a", 0) == stage.state("a", 1) == "ejected"
        await asyncio.sleep(EJECTION + 1)
        await stage.times(4)

        assert stage.state("a", 0) == stage.state("a", 1) == "available"


@STREAMING
async def test_each_probe_that_fails_makes_it_longer_and_its_caller_is_served_elsewhere(stream: bool) -> None:
    async with staged_many({"up": [recovering(FAILING), answering(served(stream))]}) as stage:
        await stage.times(5, stream=stream)
        for times in (1, 2, 3):
            await asyncio.sleep(EJECTION * times - 0.1)
            assert stage.state() == "ejected"
            await asyncio.sleep(0.2)
            assert stage.state() == "probing"
            first, second = await stage.times(2, stream=stream)
            assert (first.status, first.headers["x-gateway-attempts"]) == (200, "2")
            assert (second.status, second.headers["x-gateway-attempts"]) == (200, "1")
        assert stage.seen["up"][0] == 8


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 27), (0.5, 30), (0.999, 33)])
async def test_the_time_out_is_spread_so_that_not_all_come_back_at_once(chance: float, seconds: float) -> None:
    async with staged_many({"up": [recovering()]}, chance=chance, retry={"attempts": 1}) as stage:
        await stage.times(5)
        await asyncio.sleep(seconds - 0.1)
        assert stage.state() == "ejected"
        await asyncio.sleep(0.2)
        assert stage.state() == "probing"


async def test_a_probe_whose_caller_leaves_decides_nothing_and_the_next_call_is_the_probe() -> None:
    async with staged_many({"up": [recovering(wait_for(asyncio.Event()), served()), answering(served())]}) as stage:
        await stage.times(5)
        await asyncio.sleep(EJECTION + 1)
        async with await stage.caller() as caller:
            await caller.send(request(chat()))
            await stage.seen_by(11)
        await stage.settled()
        assert stage.state() == "probing"

        assert (await stage.ask(chat())).status == 200
        assert stage.state() == "available"
        assert stage.seen == {"up": [7, 5]}


async def test_a_replica_comes_back_even_where_nothing_may_be_retried() -> None:
    retry = {"budget": 0, "reserve": 0}
    async with staged_many({"up": [recovering(), answering(served())]}, retry=retry) as stage:
        await stage.times(5)
        assert stage.state() == "ejected"
        await asyncio.sleep(EJECTION + 1)
        await stage.times(3)

        assert stage.state() == "available"


async def test_a_probe_waits_until_its_failure_could_be_paid_for() -> None:
    sections: dict[str, Any] = {"retry": {"budget": 0, "reserve": 5}, "breaker": {"ejection": 5}}
    async with staged_many({"up": [recovering(), answering(served())]}, **sections) as stage:
        await stage.times(5)
        await asyncio.sleep(6)
        await stage.times(2)
        assert (stage.state(), stage.seen) == ("probing", {"up": [5, 7]})

        await asyncio.sleep(6)  # the reserve is whole again
        await stage.times(1)
        assert (stage.state(), stage.seen) == ("available", {"up": [6, 7]})


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("FFFFSFFFF", "available"),
        ("SSFSSFSSSF", "ejected"),
        ("SSFSSSSSSF", "available"),
        ("FSFFFSFFF", "available"),
        ("FSFFFSFFF....F", "available"),
        ("FSFFFSFFF.F", "ejected"),
    ],
)
async def test_a_share_of_failures_ejects_if_there_were_enough_calls_in_ten_seconds(said: str, state: str) -> None:
    answers = {"S": served(), "F": FAILING}
    script = answering(*(answers[letter] for letter in said if letter != "."))
    async with staged_many({"up": [script]}, retry={"attempts": 1}) as stage:
        for letter in said:
            if letter == ".":
                await asyncio.sleep(4)
            else:
                await stage.ask(chat())

        assert stage.state() == state


# When too many are out.


async def test_with_over_half_of_them_out_all_are_used_and_it_is_said() -> None:
    scripts = {"up": [answering(FAILING), answering(FAILING), answering(served())]}
    async with staged_many(scripts, retry={"reserve": 50}) as stage:
        await stage.times(4)
        assert stage.sample("gateway_upstream_panic", upstream="up") == 0
        await stage.times(1)
        assert [stage.state(replica=number) for number in range(3)] == ["ejected", "ejected", "available"]
        assert stage.sample("gateway_upstream_panic", upstream="up") == 1

        assert (await stage.ask(chat())).status == 200
        assert stage.seen == {"up": [6, 6, 6]}


async def test_with_half_of_them_out_the_other_half_serves() -> None:
    async with staged_many({"up": [recovering(), answering(served())]}) as stage:
        await stage.times(9)

        assert stage.sample("gateway_upstream_panic", upstream="up") == 0
        assert stage.seen == {"up": [5, 9]}


@STREAMING
async def test_the_only_replica_is_used_though_it_is_out(stream: bool) -> None:
    async with staged_many({"up": [recovering(served(stream))]}, retry={"attempts": 1}) as stage:
        await stage.times(5, stream=stream)
        assert stage.state() == "ejected"
        response = await stage.ask(chat(stream=stream))

        assert response.status == 200
        assert stage.state() == "ejected"
        await asyncio.sleep(EJECTION)
        await stage.ask(chat(stream=stream))
        assert stage.state() == "available"


async def test_what_is_out_comes_after_everything_else() -> None:
    models = {
        "m": {"targets": [{"upstream": "a"}], "fallbacks": ["spare"]},
        "spare": {"targets": [{"upstream": "b"}]},
    }
    scripts = {"a": [recovering()], "b": [answering(*[served()] * 7, refused("400 Wrong"), HTML, served())]}
    async with staged_many(scripts, models=models) as stage:
        await stage.times(7)
        assert stage.seen == {"a": [5], "b": [7]}
        await stage.times(1)
        assert stage.seen == {"a": [5], "b": [8]}

        response = await stage.ask(chat())
        assert (response.status, response.headers["x-gateway-upstream"]) == (200, "a")
        assert stage.seen == {"a": [6], "b": [9]}


# What counts.

HTML = send(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 0\r\n\r\n")
BREAKS: dict[str, tuple[list[Action], str]] = {
    "cut": ([reset()], "upstream_stream_interrupted"),
    "closed": ([close()], "upstream_stream_interrupted"),
    "unfinished": ([send(END)], "upstream_stream_incomplete"),
    "error": ([send(frame(event({"error": {"message": "m", "code": 500}})))], "upstream_error"),
    "nonsense": ([send(frame(event("{nonsense")))], "upstream_invalid_event"),
    "silent": ([], "upstream_idle_timeout"),
}


@pytest.mark.parametrize(("rest", "reason"), BREAKS.values(), ids=BREAKS)
async def test_a_stream_that_breaks_when_it_has_begun_counts_too(rest: list[Action], reason: str) -> None:
    script = [forever(read(), send(STREAM_HEAD, frame(ROLE), frame(delta("a"))), *rest)]
    async with staged_many({"up": [script, answering(served(stream=True))]}, timeouts={"idle": 1}) as stage:
        await stage.times(5, stream=True)

        assert stage.seen == {"up": [5, 0]}
        assert stage.state() == "ejected"
        assert [line["reason"] for line in stage.events] == [reason]
        await stage.times(1, stream=True)
        assert stage.seen == {"up": [5, 1]}


@STREAMING
async def test_callers_who_leave_eject_nobody(stream: bool) -> None:
    async with staged_many({"up": [[read()]]}, breaker={"failures": 1}) as stage:
        for number in range(3):
            async with await stage.caller() as caller:
                await caller.send(request(chat(stream=stream)))
                await stage.seen_by(number + 1)
            await stage.records.request(number)

        assert stage.state() == "available"
        assert stage.attempts(outcome="abandoned") == 3
