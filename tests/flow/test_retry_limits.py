"""How often a call is tried, and after what waits: never so that the retries themselves become the trouble."""

import asyncio
import random
from itertools import pairwise
from typing import Any

import pytest

from tests.support.client import Response
from tests.support.clock import virtual_time
from tests.support.stage import Cast, answering, chat, refused, served, staged_many
from tests.support.upstream import Action, reply

anyio_backend = virtual_time

STREAMING = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
TODAY = "date: Wed, 21 Oct 2026 07:28:00 GMT"
FAILING = refused("500 Oops")
HTML = reply(b"<html>", headers=["content-type: text/html"])


def now() -> float:
    return asyncio.get_running_loop().time()


def throttled(*headers: str) -> Action:
    return refused("429 Slow", *headers, code="rate_limit_exceeded")


async def assert_given_up(stage: Cast, response: Response, reason: str, upstream: str = "up") -> None:
    """The caller, its SDK, the log and the metrics are all told that there was no more to be had, and why."""
    assert response.headers["x-should-retry"] == "false"
    assert (await stage.records.request())["gave_up"] == reason
    assert stage.sample("gateway_retries_refused_total", upstream=upstream, reason=reason) == 1
    assert stage.sample("gateway_retries_refused_total") == 1


# The wait before the same place is tried again.


@STREAMING
@pytest.mark.parametrize("chance", [0.0, 0.25, 0.5, 0.999])
async def test_the_wait_is_a_share_of_a_bound_that_doubles_up_to_the_cap(chance: float, stream: bool) -> None:
    times: list[float] = []
    retry = {"attempts": 8, "base": 0.25, "cap": 3}
    async with staged_many({"up": [answering(FAILING, times=times)]}, chance=chance, retry=retry) as stage:
        response = await stage.ask(chat(stream=stream))

        waits = [later - earlier for earlier, later in pairwise(times)]
        assert waits == pytest.approx([chance * bound for bound in (0.25, 0.5, 1, 2, 3, 3, 3)])
        assert now() == times[-1]  # there was no sleep after the last one
        assert (response.status, response.headers["x-gateway-attempts"]) == (502, "8")


async def test_callers_who_failed_together_do_not_come_back_together() -> None:
    times: list[float] = []
    retry = {"attempts": 2, "base": 8, "reserve": 50}
    rng = random.Random(7)
    async with staged_many({"up": [answering(FAILING, times=times)]}, chance=rng, retry=retry) as stage:
        await asyncio.gather(*(stage.ask(chat()) for _ in range(40)))

        waits = [time - times[0] for time in times[40:]]
        assert len(set(waits)) == 40
        assert 0 < min(waits) < 2
        assert 6 < max(waits) < 8


@STREAMING
async def test_what_is_served_after_a_wait_says_what_it_took(stream: bool) -> None:
    async with staged_many({"up": [answering(FAILING, FAILING, served(stream))]}, chance=0.5) as stage:
        began_at = now()
        response = await stage.ask(chat(stream=stream))

        assert (response.status, response.headers["x-gateway-attempts"]) == (200, "3")
        assert now() - began_at == pytest.approx(0.5 * 0.25 + 0.5 * 0.5)
        line = await stage.records.request()
        assert line["retries"] == ["upstream_error", "upstream_error"]
        assert line["upstream_ms"] == 0
        assert line["duration_ms"] == pytest.approx(375)
        assert stage.sample("gateway_retries_total", upstream="up", reason="upstream_error") == 2


# Told to come back later.


@STREAMING
@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        (["retry-after: 2"], 2),
        (["retry-after: 2.5"], 2.5),
        (["retry-after: 5"], 5),
        (["retry-after-ms: 1500"], 1.5),
        (["retry-after: 60", "retry-after-ms: 1500"], 1.5),
        (["retry-after: Wed, 21 Oct 2026 07:28:03 GMT", TODAY], 3),
        (["retry-after: Wed, 21 Oct 2026 07:27:03 GMT", TODAY], 0),
        (["retry-after: 0"], 0),
    ],
    ids=str,
)
async def test_a_short_retry_after_is_waited_for_and_the_call_served(
    headers: list[str], wait: float, stream: bool
) -> None:
    async with staged_many({"up": [answering(throttled(*headers), served(stream))]}) as stage:
        began_at = now()
        response = await stage.ask(chat(stream=stream))

        assert (response.status, response.headers["x-gateway-attempts"]) == (200, "2")
        assert now() - began_at == pytest.approx(wait)


@pytest.mark.parametrize("status", ["503 Full", "529 Full"])
async def test_who_is_overloaded_for_a_time_is_waited_for_too(status: str) -> None:
    async with staged_many({"up": [answering(refused(status, "retry-after: 2"), served())]}) as stage:
        began_at = now()

        assert (await stage.ask(chat())).status == 200
        assert now() - began_at == 2


async def test_not_all_who_wait_for_a_retry_after_come_back_in_the_same_moment() -> None:
    async with staged_many({"up": [answering(throttled("retry-after: 2"), served())]}, chance=0.5) as stage:
        began_at = now()
        await stage.ask(chat())

        assert now() - began_at == pytest.approx(2 + 0.5 * 0.25)


@pytest.mark.parametrize("value", [None, "soon", "-1", "nan", "inf", "Wed, 99 Oct 2026 07:28:03 GMT", "9" * 400])
async def test_without_a_retry_after_that_makes_sense_the_wait_is_the_usual_one(value: str | None) -> None:
    headers = [] if value is None else [f"retry-after: {value}", TODAY]
    async with staged_many({"up": [answering(throttled(*headers), served())]}, chance=0.5) as stage:
        began_at = now()
        response = await stage.ask(chat())

        assert (response.status, response.headers["x-gateway-attempts"]) == (200, "2")
        assert now() - began_at == pytest.approx(0.5 * 0.25)


@STREAMING
@pytest.mark.parametrize(
    ("headers", "seconds", "milliseconds"),
    [
        (["retry-after: 7"], "7", "7000"),
        (["retry-after-ms: 5250"], "6", "5250"),
        (["retry-after: Wed, 21 Oct 2026 07:28:30 GMT", TODAY], "30", "30000"),
        (["retry-after: 3600"], "3600", "3600000"),
    ],
    ids=str,
)
async def test_a_long_retry_after_is_not_waited_for_but_passed_on(
    headers: list[str], seconds: str, milliseconds: str, stream: bool
) -> None:
    async with staged_many({"up": [answering(throttled(*headers))]}) as stage:
        began_at = now()
        response = await stage.ask(chat(stream=stream))

        assert (response.status, response.error["code"]) == (429, "rate_limit_exceeded")
        assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == (seconds, milliseconds)
        assert now() == began_at
        assert stage.seen == {"up": [1]}
        await assert_given_up(stage, response, "retry_after")


async def test_how_long_is_too_long_can_be_set() -> None:
    script = answering(throttled("retry-after: 7"), served())
    async with staged_many({"up": [script]}, retry={"longest_wait": 7}) as stage:
        began_at = now()

        assert (await stage.ask(chat())).status == 200
        assert now() - began_at == 7


@STREAMING
async def test_a_throttle_that_goes_on_is_told_as_one(stream: bool) -> None:
    async with staged_many({"up": [answering(throttled("retry-after: 2"))]}) as stage:
        began_at = now()
        response = await stage.ask(chat(stream=stream))

        assert (response.status, response.headers["x-gateway-attempts"]) == (429, "3")
        assert now() - began_at == 4
        assert response.headers["retry-after"] == "2"
        await assert_given_up(stage, response, "attempts")


@STREAMING
async def test_with_somewhere_else_to_go_nobody_waits_for_a_throttle(stream: bool) -> None:
    slow = throttled("retry-after: 2")
    async with staged_many({"a": [answering(slow), answering(slow)], "b": [answering(served(stream))]}) as stage:
        began_at = now()
        response = await stage.ask(chat(stream=stream))

        assert (response.status, response.headers["x-gateway-attempts"]) == (200, "3")
        assert now() == began_at
        assert stage.attempts(upstream="a", outcome="overloaded") == 2


async def test_of_two_that_are_throttled_the_first_to_have_cooled_is_waited_for() -> None:
    scripts = {
        "up": [
            answering(throttled("retry-after: 4"), served(content="first")),
            answering(throttled("retry-after: 2"), served(content="second")),
        ]
    }
    async with staged_many(scripts) as stage:
        began_at = now()

        assert b"second" in (await stage.ask(chat())).body
        assert now() - began_at == 2


async def test_a_retry_after_is_kept_even_if_it_was_another_replica_that_failed_last() -> None:
    times: list[float] = []
    script = answering(throttled("retry-after: 2"), served(), times=times)
    async with staged_many({"up": [script, answering(HTML)]}) as stage:
        response = await stage.ask(chat())

        assert (response.status, response.headers["x-gateway-attempts"]) == (200, "3")
        assert times[1] - times[0] == 2


async def test_a_replica_that_is_out_is_tried_before_a_caller_is_told_to_come_back() -> None:
    scripts = {"up": [answering(throttled("retry-after: 7")), answering(FAILING, served())]}
    async with staged_many(scripts, chance=0.9, breaker={"failures": 1}, retry={"attempts": 2}) as stage:
        assert (await stage.ask(chat())).status == 429
        assert (stage.state(replica=0), stage.state(replica=1)) == ("cooling", "ejected")

        response = await stage.ask(chat())
        assert (response.status, response.headers["x-gateway-attempts"]) == (200, "2")
        assert stage.seen == {"up": [2, 2]}


# A replica that is left alone for a while.


async def test_a_throttled_replica_is_passed_over_for_that_model_alone_and_comes_back_in_its_time() -> None:
    models = {name: {"targets": [{"upstream": "up", "model": f"{name}-upstream"}]} for name in ("m", "other")}
    scripts = {"up": [answering(throttled("retry-after: 30"), served()), answering(served())]}
    async with staged_many(scripts, models=models) as stage:
        await stage.times(1)
        assert stage.state() == "cooling"
        await stage.times(3)
        assert stage.seen == {"up": [1, 4]}

        await stage.times(2, model="other")
        assert stage.seen == {"up": [3, 4]}

        await asyncio.sleep(29.9)
        await stage.times(1)
        assert stage.seen == {"up": [3, 5]}
        await asyncio.sleep(0.2)
        assert stage.state() == "available"
        await stage.times(1)
        assert stage.seen == {"up": [4, 5]}


async def test_a_replica_is_left_alone_for_two_minutes_at_most() -> None:
    async with staged_many(
        {"up": [answering(throttled("retry-after: 1000000"), served()), answering(served())]}
    ) as stage:
        await stage.times(1)
        await asyncio.sleep(119)
        await stage.times(1)
        assert stage.seen == {"up": [1, 2]}
        await asyncio.sleep(2)
        await stage.times(1)
        assert stage.seen == {"up": [2, 2]}


@STREAMING
async def test_a_throttled_replica_is_used_when_nothing_else_is_left(stream: bool) -> None:
    script = answering(throttled("retry-after: 60"), served(stream))
    async with staged_many({"up": [script]}) as stage:
        assert [response.status for response in await stage.times(2, stream=stream)] == [429, 200]


async def test_being_throttled_is_no_failure() -> None:
    async with staged_many({"up": [answering(throttled("retry-after: 60"))]}) as stage:
        await stage.times(20)
        assert stage.state() == "cooling"
        assert not stage.events
        await asyncio.sleep(60)
        assert stage.state() == "available"


# How many.


@STREAMING
@pytest.mark.parametrize("attempts", [1, 2, 4])
@pytest.mark.parametrize("replicas", [1, 5])
async def test_there_are_as_many_attempts_as_may_be(attempts: int, replicas: int, stream: bool) -> None:
    scripts = {"up": [answering(FAILING) for _ in range(replicas)]}
    async with staged_many(scripts, retry={"attempts": attempts}) as stage:
        response = await stage.ask(chat(stream=stream))

        assert (response.status, response.error["code"]) == (502, "upstream_error")
        assert response.headers["x-gateway-attempts"] == str(attempts)
        assert sum(stage.seen["up"]) == attempts
        await assert_given_up(stage, response, "attempts")


async def test_the_upstream_at_which_a_call_began_says_how_often_it_is_tried_and_pays() -> None:
    upstreams = {"a": {"retry": {"attempts": 2, "reserve": 4, "budget": 0}}, "b": {"retry": {"attempts": 9}}}
    scripts = {"a": [answering(FAILING)], "b": [answering(FAILING)]}
    async with staged_many(scripts, upstreams=upstreams) as stage:
        response = await stage.ask(chat())

        assert (response.headers["x-gateway-upstream"], response.headers["x-gateway-attempts"]) == ("b", "2")
        assert stage.sample("gateway_upstream_retry_budget", upstream="a") == 3
        assert stage.sample("gateway_upstream_retry_budget", upstream="b") == 10


@STREAMING
async def test_without_a_budget_there_is_one_attempt(stream: bool) -> None:
    scripts = {"up": [answering(FAILING), answering(served(stream))]}
    async with staged_many(scripts, retry={"budget": 0, "reserve": 0}) as stage:
        response = await stage.ask(chat(stream=stream))

        assert (response.status, response.headers["x-gateway-attempts"]) == (502, "1")
        await assert_given_up(stage, response, "budget")
        assert stage.sample("gateway_upstream_retry_budget", upstream="up") == 0


PLACES: list[dict[str, int]] = [{"up": 1}, {"up": 3}, {"up": 2, "other": 2}]


@pytest.mark.parametrize("places", PLACES, ids=str)
@pytest.mark.parametrize("together", [False, True])
async def test_when_everything_fails_attempts_are_a_fifth_more_than_calls_and_ten_for_each_upstream(
    places: dict[str, int], together: bool
) -> None:
    scripts = {name: [answering(FAILING) for _ in range(replicas)] for name, replicas in places.items()}
    models: dict[str, Any] = {
        "m": {"targets": [{"upstream": "up"}], "fallbacks": ["spare"]},
        "spare": {"targets": [{"upstream": list(places)[-1]}]},
    }
    async with staged_many(scripts, models=models) as stage:
        if together:
            responses = list(await asyncio.gather(*(stage.ask(chat()) for _ in range(100))))
        else:
            responses = await stage.times(100)

        assert {response.status for response in responses} == {502}
        assert {response.headers["x-should-retry"] for response in responses} == {"false"}
        seen = sum(sum(replicas) for replicas in stage.seen.values())
        assert 120 < seen <= 1.2 * 100 + 10 * len(places)
        assert stage.attempts() == seen


async def test_the_budget_comes_back_with_calls_that_need_none_of_it() -> None:
    retry = {"attempts": 2, "budget": 0.5, "reserve": 2}
    async with staged_many({"up": [answering(*[FAILING] * 4, served())]}, retry=retry) as stage:
        budget = [stage.sample("gateway_upstream_retry_budget")]
        for _ in range(6):
            await stage.ask(chat())
            budget.append(stage.sample("gateway_upstream_retry_budget"))

        assert budget == [2, 1, 1, 1, 2, 2, 3]
