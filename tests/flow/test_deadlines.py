"""How long a call may take: what the operator set for each phase, and what the caller says that it will wait."""

import asyncio
from typing import Any

import orjson
import pytest

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
from tests.support.upstream import Action, Peer, Script, blackhole, forever, read, send

anyio_backend = virtual_time

HALF_A_BODY = send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{")
# Where an upstream may fall silent before there is anything for the caller; each is what it has sent by then.
SILENCES: dict[str, tuple[bool, list[Action]]] = {
    "plain": (False, []),
    "plain, in the head": (False, [send(b"HTTP/1.1 200 OK\r\ncontent-")]),
    "plain, in the body": (False, [HALF_A_BODY]),
    "stream": (True, []),
    "stream, after the head": (True, [send(STREAM_HEAD)]),
    "stream, after a comment": (True, [send(STREAM_HEAD, frame(b": hi\n\n"))]),
    "stream, after the role": (True, [send(STREAM_HEAD, frame(ROLE))]),
    "stream, in an event": (True, [send(STREAM_HEAD, frame(delta("hello")[:20]))]),
}
SILENT = pytest.mark.parametrize(("stream", "sent"), SILENCES.values(), ids=SILENCES)
PATIENCE = pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x_request_timeout_ms": "2000"}, 2.0),
        ({"x_request_timeout_ms": "333.3"}, 0.3333),
        ({"x_stainless_timeout": "10"}, 9.75),
        ({"x_stainless_read_timeout": "0.7", "x_stainless_timeout": "600"}, 0.63),
    ],
    ids=str,
)


def now() -> float:
    return asyncio.get_running_loop().time()


def after(seconds: float, *actions: Action) -> Action:
    """Do these once the clock has gone on so far."""

    async def act(peer: Peer) -> None:
        await asyncio.sleep(seconds)
        for action in actions:
            await action(peer)

    return act


def told(body: bytes) -> str:
    """The code of the error that ends a stream in-band."""
    assert b"[DONE]" not in body
    code: str = orjson.loads(body.rstrip(b"\n").rpartition(b"\n\n")[2].removeprefix(b"data: "))["error"]["code"]
    return code


async def assert_nobody_is_blamed(stage: Cast) -> None:
    """It was the caller who would wait no longer."""
    line = await stage.records.request()
    assert (line["outcome"], line["end_reason"]) == ("abandoned", "deadline_exceeded")
    assert stage.attempts() == stage.attempts(outcome="abandoned") > 0
    assert stage.state() == "available"
    assert stage.sample("gateway_client_disconnects_total") == 0


# What the caller says.


@SILENT
@PATIENCE
async def test_a_callers_patience_ends_the_call_in_its_time_and_blames_nobody(
    stream: bool, sent: list[Action], headers: dict[str, str], seconds: float
) -> None:
    async with staged_many({"up": [[read(), *sent]]}, breaker={"failures": 1}) as stage:
        began_at = now()
        response = await stage.ask(chat(stream=stream), **headers)

        assert (response.status, response.error["code"]) == (504, "deadline_exceeded")
        assert response.headers["x-should-retry"] == "false"
        assert response.headers["x-gateway-attempts"] == "1"
        assert now() - began_at == pytest.approx(seconds, abs=1e-6)
        await assert_nobody_is_blamed(stage)


@PATIENCE
@pytest.mark.parametrize("stream", [False, True])
async def test_patience_is_not_outlasted_by_a_connection_that_is_never_made(
    stream: bool, headers: dict[str, str], seconds: float
) -> None:
    with blackhole() as url:
        upstreams = {"up": {"urls": [f"{url}/v1"]}}
        async with staged_many(
            {"up": [[read()]]}, upstreams=upstreams, breaker={"failures": 1}, timeouts={"connect": 60}
        ) as stage:
            began_at = now()
            response = await stage.ask(chat(stream=stream), **headers)

            assert (response.status, response.error["code"]) == (504, "deadline_exceeded")
            assert now() - began_at == pytest.approx(seconds, abs=1e-6)
            await assert_nobody_is_blamed(stage)


@pytest.mark.parametrize("engine", ["own", "httpx"])
@pytest.mark.parametrize("milliseconds", ["2500", "2345.678", "1234.5"])
async def test_the_deadline_of_a_stream_that_has_begun_is_told_in_band(milliseconds: str, engine: str) -> None:
    talking = [read(), send(STREAM_HEAD, frame(ROLE)), forever(send(frame(delta("a"))), after(1))]
    sections: dict[str, Any] = {"breaker": {"failures": 1}, "upstreams": {"up": {"transport": {"engine": engine}}}}
    async with staged_many({"up": [talking]}, **sections) as stage:
        began_at = now()
        response = await stage.ask(chat(stream=True), x_request_timeout_ms=milliseconds)

        assert response.status == 200
        assert response.body.startswith(ROLE + delta("a"))
        assert told(response.body) == "deadline_exceeded"
        assert now() - began_at == pytest.approx(float(milliseconds) / 1000, abs=1e-6)
        await assert_nobody_is_blamed(stage)
        assert stage.sample("gateway_stream_ends_total", reason="deadline_exceeded") == 1


async def test_the_deadline_of_a_stream_that_was_only_pinged_is_told_in_band() -> None:
    async with staged_many({"up": [[read()]]}, timeouts={"ping": 1}) as stage:
        response = await stage.ask(chat(stream=True), x_request_timeout_ms="2500")

        assert response.status == 200
        assert response.body.count(b": ping\n\n") == 2
        assert told(response.body) == "deadline_exceeded"
        await assert_nobody_is_blamed(stage)


@SILENT
async def test_callers_in_a_hurry_eject_nobody(stream: bool, sent: list[Action]) -> None:
    async with staged_many({"up": [[read(), *sent]]}) as stage:
        for header in ("x_request_timeout_ms", "x_stainless_read_timeout"):
            for _ in range(6):
                await stage.ask(chat(stream=stream), **{header: "2"})

        assert stage.state() == "available"
        assert stage.attempts(outcome="abandoned") == stage.attempts() == 12


async def test_a_deadline_takes_all_attempts_and_waits_together() -> None:
    silent: Script = [read()]
    timeouts = {"reply": 2, "first_token": 2}
    async with staged_many({"up": [silent, silent, silent]}, timeouts=timeouts, retry={"attempts": 9}) as stage:
        for stream in (False, True):
            began_at = now()
            response = await stage.ask(chat(stream=stream), x_request_timeout_ms="5000")

            assert (response.status, response.error["code"]) == (504, "deadline_exceeded")
            assert response.headers["x-gateway-attempts"] == "3"
            assert now() - began_at == pytest.approx(5)
        line = await stage.records.request()
        assert line["retries"] == ["upstream_first_byte_timeout"] * 2


@pytest.mark.parametrize("value", ["junk", "0", "-1", "nan", "inf", "1e999", "1,5", "9" * 40])
async def test_a_timeout_that_is_none_is_a_400(value: str) -> None:
    async with staged_many({"up": [answering(served())]}) as stage:
        response = await stage.ask(chat(), x_request_timeout_ms=value)

        assert (response.status, response.error["code"]) == (400, "invalid_timeout")
        assert response.error["param"] == "x-request-timeout-ms"
        assert stage.seen == {"up": [0]}
        assert stage.sample("gateway_requests_total", status="400", outcome="rejected") == 1


@pytest.mark.parametrize("value", ["junk", "0", "-1", "nan", "inf", "9" * 40])
async def test_a_timeout_of_the_sdks_that_is_none_bounds_nothing(value: str) -> None:
    async with staged_many({"up": [[read(), after(100, served())]]}) as stage:
        response = await stage.ask(chat(), x_stainless_read_timeout=value, x_stainless_timeout=value)

        assert response.status == 200


@pytest.mark.parametrize("header", ["x_stainless_read_timeout", "x_stainless_timeout"])
async def test_the_sdks_timeout_bounds_a_stream_only_to_its_first_event(header: str) -> None:
    talking = [after(1, send(frame(delta("a")))) for _ in range(9)]
    script = [read(), after(4, send(STREAM_HEAD, frame(ROLE))), *talking, send(frame(DONE), END)]
    async with staged_many({"up": [script]}) as stage:
        response = await stage.ask(chat(stream=True), **{header: "6"})

        assert response.body.endswith(DONE)
        assert response.body.count(delta("a")) == 9


@pytest.mark.parametrize("header", ["x_stainless_read_timeout", "x_stainless_timeout"])
async def test_the_sdks_timeout_does_not_bound_a_stream_that_is_pinged_before(header: str) -> None:
    slow = [read(), after(20, served(stream=True))]
    async with staged_many({"up": [slow]}, timeouts={"ping": 2}) as stage:
        response = await stage.ask(chat(stream=True), **{header: "5"})

        assert response.body.startswith(b": ping\n\n")
        assert response.body.endswith(DONE)
        assert (await stage.records.request())["outcome"] == "served"


async def test_once_a_stream_has_begun_its_silence_is_the_upstreams_fault_whatever_the_sdk_said() -> None:
    begun = [read(), send(STREAM_HEAD, frame(delta("a")))]
    async with staged_many({"up": [begun]}, timeouts={"idle": 9}) as stage:
        response = await stage.ask(chat(stream=True), x_stainless_read_timeout="2")

        assert told(response.body) == "upstream_idle_timeout"
        assert stage.attempts(outcome="timed_out") == 1


# What the operator says.


@pytest.mark.parametrize("stream", [False, True])
async def test_the_total_takes_all_attempts_together(stream: bool) -> None:
    silent: Script = [read()]
    timeouts = {"reply": 2, "first_token": 2, "total": 5}
    async with staged_many({"up": [silent, silent, silent]}, timeouts=timeouts, retry={"attempts": 9}) as stage:
        began_at = now()
        response = await stage.ask(chat(stream=stream))

        assert response.status == 504
        assert response.headers["x-gateway-attempts"] == "3"
        assert response.headers["x-should-retry"] == "false"
        assert now() - began_at == pytest.approx(5)
        line = await stage.records.request()
        assert (line["outcome"], line["gave_up"]) == ("timed_out", "deadline")


@pytest.mark.parametrize(
    ("sections", "headers"),
    [
        ({"timeouts": {"total": 10}}, {}),
        ({}, {"x_request_timeout_ms": "10000"}),
        ({}, {"x_stainless_read_timeout": "10.25"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_wait_that_would_not_fit_is_not_begun(
    stream: bool, sections: dict[str, Any], headers: dict[str, str]
) -> None:
    retry = {"attempts": 9, "base": 4, "cap": 100}
    async with staged_many({"up": [answering(refused("500 Oops"))]}, chance=0.99, retry=retry, **sections) as stage:
        began_at = now()
        response = await stage.ask(chat(stream=stream), **headers)

        # after 3.96 seconds a second attempt; after 7.92 more there would be a third
        assert now() - began_at == pytest.approx(3.96)
        assert (response.status, response.error["code"]) == (502, "upstream_error")
        assert response.headers["x-gateway-attempts"] == "2"
        assert response.headers["x-should-retry"] == "false"
        assert (await stage.records.request())["gave_up"] == "deadline"
        assert stage.sample("gateway_retries_refused_total", upstream="up", reason="deadline") == 1


async def test_a_connection_that_is_never_made_is_left_for_another_replica() -> None:
    with blackhole() as url:
        async with staged_many({"other": [answering(served())], "up": [[read()]]}) as stage:
            other = stage.replicas["other"][0]
            assert other is not None
            upstreams = {"up": {"urls": [f"{url}/v1", f"{other.url}/v1"]}}
            async with staged_many({"up": [[read()]]}, upstreams=upstreams, timeouts={"connect": 3}) as ours:
                began_at = now()
                response = await ours.ask(chat())

                assert (response.status, response.headers["x-gateway-attempts"]) == (200, "2")
                assert now() - began_at == pytest.approx(3)
                assert (await ours.records.request())["retries"] == ["upstream_connect_timeout"]


async def test_each_upstream_has_its_own_timeouts() -> None:
    upstreams = {"hasty": {"timeouts": {"first_token": 1}}, "patient": {"timeouts": {"first_token": 9}}}
    slow = [read(), after(5, served(stream=True))]
    async with staged_many({"hasty": [slow], "patient": [slow]}, upstreams=upstreams) as stage:
        began_at = now()
        response = await stage.ask(chat(stream=True))

        assert response.headers["x-gateway-upstream"] == "patient"
        assert now() - began_at == pytest.approx(6)


async def test_a_caller_who_is_told_that_its_time_is_up_leaves_nothing_open() -> None:
    async with staged_many({"up": [[read()]]}) as stage, await stage.caller() as caller:
        await caller.send(request(chat(), x_request_timeout_ms="100"))
        assert (await caller.response()).status == 504
        await stage.settled()
        await stage.upstream.wait_until(lambda: stage.upstream.open_connections == 0)


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})], ids=["uvloop"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_timer_that_rings_a_little_early_blames_nobody_either(stream: bool) -> None:
    with blackhole() as url:
        upstreams = {"up": {"urls": [f"{url}/v1"]}}
        async with staged_many({"up": [[read()]]}, upstreams=upstreams, breaker={"failures": 1}) as stage:
            patience = [str(20 + number * 1.37) for number in range(30)]
            asked = (stage.ask(chat(stream=stream), x_request_timeout_ms=milliseconds) for milliseconds in patience)
            responses = await asyncio.gather(*asked)

            assert {response.error["code"] for response in responses} == {"deadline_exceeded"}
            assert stage.state() == "available"


@pytest.mark.parametrize("ended", [True, False], ids=["with [DONE]", "without"])
async def test_while_the_caller_reads_slowly_the_upstream_is_not_blamed_and_pings_do_not_pile_up(ended: bool) -> None:
    words = [frame(delta("x" * 60_000)) for _ in range(8)]
    last = [frame(delta("", finish="stop")), *([frame(DONE)] if ended else []), END]
    limits: dict[str, Any] = {"server": {"limits": {"stall_seconds": 300}}, "timeouts": {"idle": 10, "ping": 2}}
    said = [read(), send(STREAM_HEAD, frame(ROLE), *words, *last)]
    async with staged_many({"up": [said]}, **limits) as stage, await stage.caller(receive_buffer=4096) as caller:
        await caller.send(request(chat(stream=True)))
        loop, taken = asyncio.get_running_loop(), b""
        while DONE not in taken[-100:]:
            await asyncio.sleep(1)
            taken += (piece := await loop.sock_recv(caller.sock, 4096))
            assert piece, taken[-200:]
            assert len([task for task in asyncio.all_tasks() if task.get_name() == "ping"]) <= 1

        line = await stage.records.request()
        assert (line["outcome"], line["end_reason"]) == ("served", "done")
