"""What one replica, target or model could not do and another could: the caller never learns of it, and the record does."""

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from tests.support.clock import virtual_time
from tests.support.stage import (
    DONE,
    END,
    JSON,
    ROLE,
    STREAM_HEAD,
    UPSTREAM_KEY,
    answering,
    chat,
    delta,
    event,
    frame,
    refused,
    served,
    staged_many,
    streamed,
)
from tests.support.upstream import Action, Peer, Script, close, forever, read, reply, reset, send

anyio_backend = virtual_time

OK = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
ERROR = {"error": {"message": "out of memory at 10.0.0.7", "type": "server_error", "param": None, "code": None}}
WHOLE = b"".join([ROLE, delta("hello"), delta(finish="stop"), DONE])
NOTHING_YET = event({"id": "c-1", "choices": [], "prompt_filter_results": []})


def now() -> float:
    return asyncio.get_running_loop().time()


def begun(*pieces: bytes, end: Action | None = None) -> Script:
    """A stream that begins with these events."""
    return [read(), send(STREAM_HEAD, *(frame(piece) for piece in pieces)), end or send(END)]


# What goes wrong, the outcome of the attempt, and the reason in the record.
EITHER: dict[str, tuple[Script | None, str, str]] = {
    "refused": (None, "failed", "upstream_unreachable"),
    "reset": ([read(), reset()], "failed", "upstream_reset"),
    "closed": ([read(), close()], "failed", "upstream_invalid_response"),
    "half a head": ([read(), send(b"HTTP/1.1 200 OK\r\ncon"), close()], "failed", "upstream_invalid_response"),
    "nonsense": ([read(), send(b"nonsense\r\n\r\n")], "failed", "upstream_invalid_response"),
    "408": ([read(), refused("408 Late")], "failed", "upstream_error"),
    "429": ([read(), refused("429 Slow")], "overloaded", "rate_limit_exceeded"),
    "500": ([read(), refused("500 Oops")], "failed", "upstream_error"),
    "502": ([read(), reply(b"<html>", status="502 Bad")], "failed", "upstream_error"),
    "503": ([read(), refused("503 Out")], "failed", "upstream_unavailable"),
    "503 for a time": ([read(), refused("503 Full", "retry-after: 9")], "overloaded", "upstream_overloaded"),
    "504": ([read(), reply(b"", status="504 Late")], "timed_out", "upstream_timeout"),
    "529": ([read(), refused("529 Full")], "overloaded", "upstream_overloaded"),
    "redirect": ([read(), reply(b"", status="302 Gone", headers=["location: /"])], "failed", "upstream_redirect"),
    "html": (
        [read(), reply(b"<html>", headers=["content-type: text/html"])],
        "failed",
        "upstream_bad_content_type",
    ),
    "encoded": (
        [read(), reply(b"{}", headers=[JSON, "content-encoding: gzip"])],
        "failed",
        "upstream_bad_encoding",
    ),
    "error under 200": ([read(), reply(orjson.dumps(ERROR), headers=[JSON])], "failed", "upstream_error"),
    "bad json": ([read(), reply(b'{"choices":', headers=[JSON])], "failed", "upstream_invalid_response"),
}
TRUNCATED: Script = [read(), send(f"{OK}content-length: 100\r\n\r\n{{}}".encode()), close()]
PLAIN: dict[str, tuple[Script | None, str, str]] = {
    "truncated": (TRUNCATED, "failed", "upstream_truncated"),
    "events": ([read(), send(*streamed(ROLE, DONE))], "failed", "upstream_bad_content_type"),
}
STREAMED: dict[str, tuple[Script | None, str, str]] = {
    "truncated": (TRUNCATED, "failed", "upstream_invalid_response"),
    "error first": (begun(event(ERROR)), "failed", "upstream_error"),
    "throttled first": (
        begun(event({"error": {"message": "m", "code": 429}})),
        "overloaded",
        "rate_limit_exceeded",
    ),
    "error after a comment": (begun(b": hi\n\n", event(ERROR)), "failed", "upstream_error"),
    "error after the role": (begun(ROLE, event(ERROR)), "failed", "upstream_error"),
    "error with the role": (begun(ROLE + event(ERROR)), "failed", "upstream_error"),
    "error after no choices": (begun(NOTHING_YET, ROLE, event(ERROR)), "failed", "upstream_error"),
    "nonsense first": (begun(event("{nonsense")), "failed", "upstream_invalid_event"),
    "nonsense after the role": (begun(ROLE, event("{nonsense")), "failed", "upstream_invalid_event"),
    "nothing": (begun(), "failed", "upstream_stream_incomplete"),
    "comments": (begun(b": hi\n\n"), "failed", "upstream_stream_incomplete"),
    "role": (begun(ROLE), "failed", "upstream_stream_incomplete"),
    "cut": (begun(end=reset()), "failed", "upstream_reset"),
    "cut after the role": (begun(ROLE, end=reset()), "failed", "upstream_stream_interrupted"),
}
ALL = [
    pytest.param(stream, *row, id=f"{'stream' if stream else 'plain'}-{name}")
    for stream, rows in ((False, EITHER | PLAIN), (True, EITHER | STREAMED))
    for name, row in rows.items()
]


@pytest.mark.parametrize(("stream", "fault", "outcome", "reason"), ALL)
async def test_what_one_replica_does_not_serve_another_does_at_once(
    stream: bool, fault: Script | None, outcome: str, reason: str
) -> None:
    async with staged_many({"up": [fault, answering(served(stream))]}) as stage:
        began_at = now()
        response = await stage.ask(chat(stream=stream))

        assert response.status == 200
        assert response.body == WHOLE if stream else b"hello" in response.body
        assert response.headers["x-gateway-upstream"] == "up"
        assert response.headers["x-gateway-attempts"] == "2"
        assert now() == began_at
        assert stage.seen == {"up": [0 if fault is None else 1, 1]}
        bad, good = (replica.name for replica in stage.gateway.fleet.upstreams["up"].replicas)
        assert stage.attempts(upstream="up", replica=bad, outcome=outcome) == 1
        assert stage.attempts(upstream="up", replica=good, outcome="served") == 1
        assert stage.attempts() == 2
        assert stage.sample("gateway_retries_total", upstream="up", reason=reason) == 1
        assert stage.sample("gateway_requests_total", status="200", outcome="served") == 1


async def test_one_line_tells_of_both_attempts() -> None:
    async with staged_many({"up": [answering(refused("500 Oops")), answering(served())]}) as stage:
        await stage.ask(chat())

        line = await stage.records.request()
        assert (line["status"], line["outcome"], line["end_reason"]) == (200, "served", "done")
        assert (line["attempts"], line["retries"], line["gave_up"]) == (2, ["upstream_error"], "")
        assert line["replica"] == stage.gateway.fleet.upstreams["up"].replicas[1].name
        assert len(stage.records.lines) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_the_other_replica_gets_the_same_request(stream: bool) -> None:
    async with staged_many({"up": [answering(refused("500 Oops")), answering(served(stream))]}) as stage:
        await stage.ask(chat(stream=stream, seed=7), x_request_id="r-1")

        first, second = (replica.requests[0] for replica in stage.replicas["up"] if replica is not None)
        assert first.body == second.body
        assert orjson.loads(first.body)["seed"] == 7
        assert (first.header("x-request-id"), second.header("x-request-id")) == ("r-1", "r-1-2")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_replica_that_says_nothing_is_left_for_another_in_its_time(stream: bool) -> None:
    timeouts = {"first_token": 3, "reply": 3}
    async with staged_many({"up": [[read()], answering(served(stream))]}, timeouts=timeouts) as stage:
        began_at = now()
        response = await stage.ask(chat(stream=stream))

        assert (response.status, response.headers["x-gateway-attempts"]) == (200, "2")
        assert now() - began_at == pytest.approx(3)
        assert stage.attempts(outcome="timed_out") == 1
        assert (await stage.records.request())["retries"] == ["upstream_first_byte_timeout"]


async def test_a_stream_that_says_its_role_and_then_only_comments_is_left_for_another() -> None:
    async def comment(peer: Peer) -> None:
        await asyncio.sleep(1)
        await send(frame(b": still here\n\n"))(peer)

    chatting = begun(ROLE, end=forever(comment))
    async with staged_many({"up": [chatting, answering(served(stream=True))]}, timeouts={"idle": 4.5}) as stage:
        began_at = now()
        response = await stage.ask(chat(stream=True))

        assert response.body == WHOLE
        assert now() - began_at == pytest.approx(4.5)
        assert (await stage.records.request())["retries"] == ["upstream_idle_timeout"]


async def test_a_stream_that_has_been_pinged_still_goes_elsewhere_and_is_counted_as_a_stream() -> None:
    timeouts = {"ping": 1, "first_token": 2.5}
    async with staged_many({"up": [[read()], answering(served(stream=True))]}, timeouts=timeouts) as stage:
        body = (await stage.ask(chat(stream=True))).body

        assert body == b": ping\n\n" * 2 + WHOLE
        assert (await stage.records.request())["attempts"] == 2
        assert stage.sample("gateway_stream_ends_total", upstream="up", reason="done") == 1
        assert stage.sample("gateway_time_to_first_token_seconds_count", upstream="up") == 1


# Once there is content.


@pytest.mark.parametrize(
    ("rest", "code"),
    [
        ([send(frame(event(ERROR)))], "upstream_error"),
        ([send(frame(event("{nonsense")))], "upstream_invalid_event"),
        ([send(END)], "upstream_stream_incomplete"),
        ([close()], "upstream_stream_interrupted"),
        ([reset()], "upstream_stream_interrupted"),
    ],
)
async def test_after_the_first_content_nothing_is_tried_again(rest: list[Action], code: str) -> None:
    broken = [*begun(ROLE, delta("hel"), end=send()), *rest]
    async with staged_many({"up": [broken, answering(served(stream=True))]}) as stage:
        response = await stage.ask(chat(stream=True))

        assert (response.status, response.headers["x-gateway-attempts"]) == (200, "1")
        head, _, told = response.body.rstrip(b"\n").rpartition(b"\n\n")
        assert head + b"\n\n" == ROLE + delta("hel")
        assert orjson.loads(told.removeprefix(b"data: "))["error"]["code"] == code
        assert stage.seen == {"up": [1, 0]}
        line = await stage.records.request()
        assert (line["attempts"], line["retries"], line["outcome"]) == (1, [], "failed")


# The order of places.


class Journal:
    """Who was asked, for which model, when: of all that share it. All of them fail."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str]] = []
        self.times: list[float] = []

    def failing(self, name: str, answer: Action | None = None) -> Script:
        """A replica that writes itself down."""

        async def note(peer: Peer) -> None:
            self.entries.append((name, orjson.loads(peer.upstream.requests[-1].body)["model"]))
            self.times.append(now())
            await (answer or refused("500 Oops"))(peer)

        return [forever(read(), note)]


FALLBACKS: dict[str, Any] = {
    "m": {
        "targets": [{"upstream": "a", "model": "a-m"}, {"upstream": "b"}],
        "fallbacks": ["spare", "last"],
    },
    "spare": {"targets": [{"upstream": "c", "model": "spare-m"}], "fallbacks": ["never"]},
    "last": {"targets": [{"upstream": "d"}]},
    "never": {"targets": [{"upstream": "e"}]},
}


async def test_the_order_is_another_replica_the_next_target_the_fallbacks_and_then_the_rest() -> None:
    journal = Journal()
    scripts = {"a": ["a0", "a1", "a2"], "b": ["b0"], "c": ["c0"], "d": ["d0"], "e": ["e0"]}
    upstreams = {name: [journal.failing(one) for one in replicas] for name, replicas in scripts.items()}
    async with staged_many(upstreams, models=FALLBACKS, retry={"attempts": 7}) as stage:
        response = await stage.ask(chat())

        assert journal.entries == [
            ("a0", "a-m"),
            ("a1", "a-m"),
            ("b0", "m"),
            ("c0", "spare-m"),
            ("d0", "last"),
            ("a2", "a-m"),
            ("a0", "a-m"),
        ]
        assert journal.times[:6] == [journal.times[0]] * 6
        assert (response.status, response.headers["x-gateway-attempts"]) == (502, "7")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fallback_model_is_served_under_its_own_name_upstream_and_told_as_the_model_asked_for(
    stream: bool,
) -> None:
    journal = Journal()
    scripts: dict[str, list[Script | None]] = {
        "a": [journal.failing("a0")],
        "b": [None],
        "c": [answering(served(stream))],
        "d": [None],
        "e": [None],
    }
    async with staged_many(scripts, models=FALLBACKS) as stage:
        response = await stage.ask(chat(stream=stream))

        assert (response.status, response.headers["x-gateway-upstream"]) == (200, "c")
        assert response.headers["x-gateway-attempts"] == "3"
        assert stage.replicas["c"][0] is not None
        assert orjson.loads(stage.replicas["c"][0].requests[0].body)["model"] == "spare-m"
        line = await stage.records.request()
        assert (line["model"], line["upstream"], line["upstream_model"]) == ("m", "c", "spare-m")
        assert line["retries"] == ["upstream_error", "upstream_unreachable"]


async def test_moving_on_waits_for_nothing_and_coming_back_waits_once() -> None:
    journal = Journal()
    scripts = {"up": [journal.failing("0"), journal.failing("1")]}
    async with staged_many(scripts, chance=0.5, retry={"attempts": 3}) as stage:
        await stage.ask(chat())

        assert [name for name, _ in journal.entries] == ["1", "0", "1"]
        first, second, third = journal.times
        assert second == first
        assert third - second == pytest.approx(0.5 * 0.5)  # the second bound is twice the first
        assert now() == third


@pytest.mark.parametrize("bad", ["html", "encoded", "redirect"])
async def test_what_would_be_the_same_at_the_same_place_is_not_tried_there_again(bad: str) -> None:
    fault, _, _ = EITHER[bad]
    async with staged_many({"up": [fault]}) as stage:
        response = await stage.ask(chat())

        assert (response.status, response.headers["x-gateway-attempts"]) == (502, "1")
        assert (await stage.records.request())["gave_up"] == "nowhere"
        assert stage.sample("gateway_retries_refused_total", upstream="up", reason="nowhere") == 1


# Whose fault it is.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
async def test_what_the_caller_did_wrong_is_told_at_once_and_held_against_nobody(status: int, stream: bool) -> None:
    wrong = answering(refused(f"{status} Wrong", message="Too long.", code="context_length_exceeded"))
    async with staged_many({"up": [wrong, wrong]}) as stage:
        responses = await stage.times(12, stream=stream)

        assert {response.status for response in responses} == {status}
        assert {response.error["code"] for response in responses} == {"context_length_exceeded"}
        assert {response.headers["x-should-retry"] for response in responses} == {"false"}
        assert stage.seen == {"up": [12, 0]}
        assert stage.state() == "available"
        assert stage.attempts(outcome="rejected") == 12
        assert (await stage.records.request())["gave_up"] == ""


async def test_what_is_wrong_with_the_request_inside_a_200_is_not_tried_again_either() -> None:
    wrong = begun(event({"error": {"message": "too long", "type": "BadRequestError", "code": 400}}))
    async with staged_many({"up": [wrong, wrong]}) as stage:
        response = await stage.ask(chat(stream=True))

        assert (response.status, response.headers["x-gateway-attempts"]) == (400, "1")


KEY_FAULTS: list[Callable[[], Action]] = [
    lambda: refused("401 No", message=f"bad key {UPSTREAM_KEY}"),
    lambda: refused("403 No"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", KEY_FAULTS)
async def test_our_key_refused_is_another_upstreams_call_and_no_other_replicas(
    fault: Callable[[], Action], stream: bool
) -> None:
    bad = answering(fault())
    async with staged_many({"a": [bad, bad], "b": [answering(served(stream))]}) as stage:
        response = await stage.ask(chat(stream=stream))
        assert (response.status, response.headers["x-gateway-upstream"]) == (200, "b")
        assert stage.seen == {"a": [1, 0], "b": [1]}
        assert stage.attempts(upstream="a", outcome="unauthorised") == 1
        assert stage.sample("gateway_upstream_key_refused", upstream="a") == 1
        assert stage.sample("gateway_upstream_key_refused", upstream="b") == 0
        assert stage.sample("gateway_upstream_out_of_quota") == 0
        assert stage.state("a") == "available"
        assert [(line["event"], line["upstream"], line["reason"]) for line in stage.events] == [
            ("key_refused", "a", "upstream_auth")
        ]

        assert (await stage.ask(chat(stream=stream))).headers["x-gateway-attempts"] == "1"
        assert stage.seen == {"a": [1, 0], "b": [2]}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", KEY_FAULTS)
async def test_our_key_refused_everywhere_is_a_502_and_never_a_401(fault: Callable[[], Action], stream: bool) -> None:
    bad = answering(fault())
    async with staged_many({"a": [bad, bad]}) as stage:
        response = await stage.ask(chat(stream=stream))

        assert (response.status, response.error["code"]) == (502, "upstream_auth")
        assert response.headers["x-should-retry"] == "false"
        assert UPSTREAM_KEY not in response.body.decode()
        assert stage.seen == {"a": [1, 0]}
        line = await stage.records.request()
        assert (line["outcome"], line["gave_up"]) == ("unauthorised", "nowhere")


async def test_a_key_that_is_taken_again_comes_back_with_one_probe() -> None:
    scripts = {"a": [answering(refused("401 No"), refused("401 No"), served())], "b": [answering(served())]}
    async with staged_many(scripts, breaker={"ejection": 20, "max_ejection": 60}) as stage:
        await stage.times(2)
        assert stage.seen == {"a": [1], "b": [2]}

        await asyncio.sleep(20)  # and one probe, which fails: it is twice as long until the next
        assert [response.headers["x-gateway-attempts"] for response in await stage.times(2)] == ["2", "1"]
        assert stage.seen == {"a": [2], "b": [4]}
        await asyncio.sleep(30)
        await stage.times(1)
        assert stage.seen == {"a": [2], "b": [5]}

        await asyncio.sleep(10)
        await stage.times(2)
        assert stage.seen == {"a": [4], "b": [5]}
        assert stage.sample("gateway_upstream_key_refused", upstream="a") == 0
        assert [line["event"] for line in stage.events] == ["key_refused", "key_refused", "key_accepted"]


async def test_a_call_that_says_nothing_of_the_key_leaves_the_probe_to_the_next() -> None:
    scripts = {"a": [answering(refused("401 No"), refused("500 Oops"), served())], "b": [answering(served())]}
    async with staged_many(scripts) as stage:
        await stage.times(1)
        await asyncio.sleep(40)
        upstreams = [response.headers["x-gateway-upstream"] for response in await stage.times(3)]

        assert upstreams == ["b", "a", "a"]
        assert stage.sample("gateway_upstream_key_refused", upstream="a") == 0


async def test_a_dry_account_is_another_upstreams_call_and_else_a_503_that_is_not_the_callers_quota() -> None:
    dry = answering(refused("429 Dry", "retry-after: 3", type="insufficient_quota"))
    async with staged_many({"a": [dry, dry]}) as stage:
        response = await stage.ask(chat())
        assert (response.status, response.error["code"]) == (503, "upstream_quota")
        assert stage.sample("gateway_upstream_out_of_quota", upstream="a") == 1
        assert stage.sample("gateway_upstream_key_refused", upstream="a") == 1
        await asyncio.sleep(60)  # its time is over, and the next call would be the probe
        assert stage.sample("gateway_upstream_out_of_quota", upstream="a") == 1
        assert (response.headers["x-gateway-attempts"], response.headers["retry-after"]) == ("1", "3")
    async with staged_many({"a": [dry, dry], "b": [answering(served())]}) as stage:
        assert (await stage.ask(chat())).headers["x-gateway-upstream"] == "b"


async def test_a_model_that_our_project_may_not_use_is_not_found_and_the_key_stays_good() -> None:
    async with staged_many({"a": [answering(refused("403 No", code="model_not_found"))]}) as stage:
        response = await stage.ask(chat())

        assert (response.status, response.error["code"]) == (404, "model_not_found")
        assert stage.sample("gateway_upstream_key_refused", upstream="a") == 0
