"""A second attempt beside a slow one: whoever speaks first is served, and nothing is left of the other."""

import asyncio
from typing import Any

import pytest

from tests.support.client import Response
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
from tests.support.upstream import Action, Peer, Script, read, send

anyio_backend = virtual_time

STREAMING = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
SILENT: Script = [read()]


def now() -> float:
    return asyncio.get_running_loop().time()


def after(seconds: float, *actions: Action) -> Action:
    """Do these once the clock has gone on so far."""

    async def act(peer: Peer) -> None:
        await asyncio.sleep(seconds)
        for action in actions:
            await action(peer)

    return act


def hedged(*upstreams: str, after: float | str = 2) -> dict[str, Any]:
    """Model `m`, with these targets, and a second attempt after so many seconds."""
    return {"m": {"targets": [{"upstream": name} for name in upstreams or ("up",)], "hedge": {"after": after}}}


async def assert_left(stage: Cast, upstream: str, replica: int) -> None:
    """The replica's attempt was given up, nobody is blamed, and its connection is closed."""
    await stage.settled()
    loser = stage.replicas[upstream][replica]
    assert loser is not None
    await loser.wait_until(lambda: loser.open_connections == 0)
    name = stage.gateway.fleet.upstreams[upstream].replicas[replica].name
    assert stage.attempts(upstream=upstream, replica=name, outcome="abandoned") == 1
    assert stage.state(upstream, replica) == "available"


@STREAMING
async def test_a_second_attempt_where_it_can_not_be_done_leaves_the_first_one_alone(stream: bool) -> None:
    only_text = {"b": {"kind": "triton", "health": {"enabled": False}}}
    scripts = {"a": [answering(after(3, served(stream)))], "b": [SILENT]}
    async with staged_many(scripts, upstreams=only_text, models=hedged("a", "b", after=1)) as stage:
        response = await stage.ask(chat(stream=stream))

        assert (response.status, response.headers["x-gateway-upstream"]) == (200, "a")
        assert stage.seen == {"a": [1], "b": [0]}
        assert stage.attempts(outcome="abandoned") == 0


@STREAMING
async def test_after_its_time_a_second_attempt_is_made_elsewhere_and_served_if_it_speaks_first(stream: bool) -> None:
    async with staged_many({"up": [SILENT, answering(after(1, served(stream)))]}, models=hedged()) as stage:
        began_at = now()
        response = await stage.ask(chat(stream=stream))

        assert (response.status, response.headers["x-gateway-attempts"]) == (200, "2")
        assert now() - began_at == pytest.approx(3)
        assert stage.seen == {"up": [1, 1]}
        assert stage.sample("gateway_hedges_total", model="m", served="second") == 1
        assert stage.sample("gateway_hedges_total") == 1
        assert stage.sample("gateway_upstream_retry_budget", upstream="up") == 9
        line = await stage.records.request()
        assert (line["attempts"], line["retries"], line["outcome"]) == (2, [], "served")
        assert line["replica"] == stage.gateway.fleet.upstreams["up"].replicas[1].name
        assert line["upstream_ms"] == pytest.approx(3000)
        assert stage.attempts(outcome="served") == 1
        await assert_left(stage, "up", 0)


@STREAMING
async def test_the_first_is_served_if_it_speaks_first_after_all(stream: bool) -> None:
    async with staged_many(
        {"a": [answering(after(3, served(stream)))], "b": [SILENT]}, models=hedged("a", "b")
    ) as stage:
        began_at = now()
        response = await stage.ask(chat(stream=stream))

        assert (response.status, response.headers["x-gateway-upstream"]) == (200, "a")
        assert response.headers["x-gateway-attempts"] == "2"
        assert now() - began_at == pytest.approx(3)
        assert stage.sample("gateway_hedges_total", model="m", served="first") == 1
        assert (await stage.records.request())["upstream"] == "a"
        await assert_left(stage, "b", 0)


async def test_a_role_is_not_yet_speaking() -> None:
    first = [read(), send(STREAM_HEAD, frame(ROLE))]
    second = answering(after(1, served(stream=True, content="second")))
    async with staged_many({"up": [first, second]}, models=hedged()) as stage:
        response = await stage.ask(chat(stream=True))

        assert b"second" in response.body
        assert response.body.count(ROLE) == 1
        await assert_left(stage, "up", 0)


@STREAMING
async def test_who_answers_in_time_is_not_hedged(stream: bool) -> None:
    async with staged_many({"up": [answering(after(1.9, served(stream))), SILENT]}, models=hedged()) as stage:
        response = await stage.ask(chat(stream=stream))

        assert response.headers["x-gateway-attempts"] == "1"
        assert stage.seen == {"up": [1, 0]}
        assert stage.sample("gateway_hedges_total") == 0


async def test_a_stream_that_has_begun_is_not_hedged_however_slow_it_is() -> None:
    slow = [read(), send(STREAM_HEAD, frame(delta("a"))), after(9, send(frame(DONE), END))]
    async with staged_many({"up": [slow, SILENT]}, models=hedged()) as stage:
        await stage.ask(chat(stream=True))

        assert stage.seen == {"up": [1, 0]}


@STREAMING
@pytest.mark.parametrize(
    ("replicas", "retry"),
    [(1, {}), (2, {"budget": 0, "reserve": 0}), (2, {"attempts": 1})],
    ids=["no place", "no budget", "one attempt"],
)
async def test_where_there_is_nothing_to_hedge_with_the_first_is_waited_for(
    replicas: int, retry: dict[str, int], stream: bool
) -> None:
    scripts = {"up": [answering(after(9, served(stream))), answering(served(stream))][:replicas]}
    async with staged_many(scripts, models=hedged(), retry=retry) as stage:
        began_at = now()
        response = await stage.ask(chat(stream=stream))

        assert (response.status, response.headers["x-gateway-attempts"]) == (200, "1")
        assert now() - began_at == pytest.approx(9)
        assert stage.sample("gateway_hedges_total") == 0


async def test_a_hedge_goes_neither_to_who_is_out_nor_to_who_is_full() -> None:
    scripts = {
        "a": [answering(after(9, served()), after(9, served()))],
        "out": [answering(refused("500 Oops"), served())],
        "full": [SILENT],
        "b": [answering(served())],
    }
    models = {
        **hedged("a", "out", "full", "b"),
        **{name: {"targets": [{"upstream": name}]} for name in ("out", "full")},
    }
    upstreams = {"out": {"breaker": {"failures": 1}, "retry": {"attempts": 1}}, "full": {"concurrency": {"limit": 1}}}
    async with staged_many(scripts, models=models, upstreams=upstreams) as stage, await stage.caller() as caller:
        await stage.times(1, model="out")
        await caller.send(request(chat(model="full")))
        await stage.seen_by(2)

        assert (await stage.ask(chat())).headers["x-gateway-upstream"] == "b"
        assert stage.seen == {"a": [1], "out": [1], "full": [1], "b": [1]}


@STREAMING
async def test_p95_is_as_long_as_most_of_the_latest_calls_took_once_there_were_enough(stream: bool) -> None:
    usual = [after(seconds, served(stream)) for seconds in (3, 1, *[2] * 18)]
    scripts = {"up": [answering(*usual, after(60, served(stream))), answering(served(stream))]}
    async with staged_many(scripts, models=hedged(after="p95")) as stage:
        await stage.times(20, stream=stream)
        assert stage.seen == {"up": [20, 0]}

        began_at = now()
        assert (await stage.ask(chat(stream=stream))).headers["x-gateway-attempts"] == "2"
        assert now() - began_at == pytest.approx(2)
        assert stage.seen == {"up": [21, 1]}


async def test_how_long_plain_replies_took_says_nothing_of_a_streams_first_event() -> None:
    scripts = {"up": [answering(*[served()] * 20, after(9, served(stream=True))), SILENT]}
    async with staged_many(scripts, models=hedged(after="p95")) as stage:
        await stage.times(20)

        assert (await stage.ask(chat(stream=True))).headers["x-gateway-attempts"] == "1"


# When they fail.


@STREAMING
async def test_while_one_of_two_is_under_way_a_failure_of_the_other_is_nothing(stream: bool) -> None:
    for scripts in (
        {"up": [answering(after(3, refused("500 Oops"))), answering(after(2, served(stream)))]},
        {"up": [answering(after(4, served(stream))), answering(refused("500 Oops"))]},
    ):
        async with staged_many(scripts, models=hedged()) as stage:
            began_at = now()
            response = await stage.ask(chat(stream=stream))

            assert (response.status, response.headers["x-gateway-attempts"]) == (200, "2")
            assert now() - began_at == pytest.approx(4)
            assert (stage.attempts(outcome="failed"), stage.attempts(outcome="served")) == (1, 1)


@STREAMING
async def test_when_both_fail_it_is_tried_elsewhere(stream: bool) -> None:
    failing = answering(after(3, refused("500 Oops")))
    async with staged_many({"up": [failing, failing, answering(served(stream))]}, models=hedged()) as stage:
        response = await stage.ask(chat(stream=stream))

        assert (response.status, response.headers["x-gateway-attempts"]) == (200, "3")
        assert stage.seen == {"up": [1, 1, 1]}
        assert stage.sample("gateway_hedges_total", model="m", served="neither") == 1


@STREAMING
async def test_when_all_fail_the_caller_is_told_within_the_attempts(stream: bool) -> None:
    failing = answering(after(3, refused("503 Out")))
    async with staged_many({"up": [failing] * 4}, models=hedged()) as stage:
        response = await stage.ask(chat(stream=stream))

        assert (response.status, response.error["code"]) == (503, "upstream_unavailable")
        assert (response.headers["x-gateway-attempts"], response.headers["x-should-retry"]) == ("3", "false")
        assert (await stage.records.request())["gave_up"] == "attempts"


@STREAMING
async def test_a_failure_before_its_time_is_tried_elsewhere_at_once_and_not_hedged(stream: bool) -> None:
    slow = answering(after(9, served(stream)))
    async with staged_many({"up": [answering(refused("500 Oops")), slow, slow]}, models=hedged()) as stage:
        began_at = now()
        response = await stage.ask(chat(stream=stream))

        assert (response.status, response.headers["x-gateway-attempts"]) == (200, "2")
        assert now() - began_at == pytest.approx(9)
        assert stage.seen == {"up": [1, 1, 0]}


@STREAMING
async def test_what_is_the_callers_fault_is_told_without_waiting_for_the_other(stream: bool) -> None:
    async with staged_many({"up": [answering(after(3, refused("400 Wrong"))), SILENT]}, models=hedged()) as stage:
        began_at = now()
        response = await stage.ask(chat(stream=stream))

        assert response.status == 400
        assert now() - began_at == pytest.approx(3)
        await assert_left(stage, "up", 1)


# Whoever is left.


@STREAMING
async def test_a_caller_who_leaves_takes_both_with_him(stream: bool) -> None:
    async with staged_many({"up": [SILENT, SILENT]}, models=hedged()) as stage:
        async with await stage.caller() as caller:
            await caller.send(request(chat(stream=stream)))
            await asyncio.sleep(2.5)
            assert stage.seen == {"up": [1, 1]}
        line = await stage.records.request()

        assert (line["end_reason"], line["attempts"]) == ("caller_left", 2)
        assert stage.sample("gateway_hedges_total", model="m", served="neither") == 1
        assert stage.sample("gateway_client_disconnects_total", phase="upstream") == 1
        for replica in (0, 1):
            await assert_left(stage, "up", replica)


@STREAMING
async def test_a_callers_deadline_ends_both(stream: bool) -> None:
    async with staged_many({"up": [SILENT, SILENT]}, models=hedged(), breaker={"failures": 1}) as stage:
        began_at = now()
        response = await stage.ask(chat(stream=stream), x_request_timeout_ms="2500")

        assert (response.status, response.error["code"]) == (504, "deadline_exceeded")
        assert now() - began_at == pytest.approx(2.5)
        for replica in (0, 1):
            await assert_left(stage, "up", replica)


async def test_a_stream_goes_by_the_timeouts_of_whoever_serves_it() -> None:
    slow = [
        read(),
        after(3, send(STREAM_HEAD, frame(delta("a")))),
        after(5, send(frame(delta("b")))),
        send(frame(DONE), END),
    ]
    upstreams = {"b": {"timeouts": {"idle": 1, "ping": 1}}}
    async with staged_many({"a": [slow], "b": [SILENT]}, models=hedged("a", "b"), upstreams=upstreams) as stage:
        response = await stage.ask(chat(stream=True))

        assert response.body == delta("a") + delta("b") + DONE


async def test_hedges_are_paid_for_like_any_other_attempt() -> None:
    slow = answering(after(3, served()))
    retry = {"budget": 0.5, "reserve": 2}
    async with staged_many({"up": [slow, slow]}, models=hedged(), retry=retry) as stage:
        responses = await asyncio.gather(*(stage.ask(chat()) for _ in range(20)))

        assert {response.status for response in responses} == {200}
        assert sum(stage.seen["up"]) == 20 + 2 + 20 * 0.5
        assert stage.sample("gateway_hedges_total") == 12


async def test_who_is_always_too_slow_is_not_ejected_for_it() -> None:
    async with staged_many({"up": [SILENT, answering(served())]}, models=hedged(), breaker={"failures": 1}) as stage:
        responses: list[Response] = await stage.times(4)

        assert {response.status for response in responses} == {200}
        assert not stage.events
