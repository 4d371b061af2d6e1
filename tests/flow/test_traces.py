"""What a real OTLP receiver gets of calls through a real gateway, over both transports, and what upstreams are told."""

import asyncio
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.observe import semconv
from tests.support.receiver import Got, Receiver, receiving
from tests.support.stage import (
    DONE,
    KEY,
    ROLE,
    STREAM_HEAD,
    UPSTREAM_KEY,
    USAGE,
    answering,
    chat,
    delta,
    frame,
    refused,
    request,
    served,
    staged,
    staged_many,
    streamed,
)
from tests.support.upstream import forever, read, reset, send, wait_for

pytestmark = pytest.mark.anyio

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-1] + "0"
TRACE_ID = PARENT.split("-")[1]


@pytest.fixture(params=["grpc", "http"])
def receiver(request: pytest.FixtureRequest) -> Iterator[Receiver]:
    with receiving(request.param) as receiver:
        yield receiver


@pytest.fixture
def one() -> Iterator[Receiver]:
    """Where the way to it does not matter."""
    with receiving("grpc") as receiver:
        yield receiver


def tracing(receiver: Receiver, **members: Any) -> dict[str, Any]:
    return {"endpoint": receiver.url, "protocol": receiver.protocol, **members}


async def got(receiver: Receiver, number: int) -> tuple[Got, list[Got]]:
    """The request's span and those of its attempts, as many as there should be. A stage that has closed has sent them."""
    spans = await asyncio.to_thread(receiver.spans, number)
    assert len(spans) == number
    (server,) = [span for span in spans if span.server]
    return server, [span for span in spans if not span.server]


async def test_a_plain_call_is_a_span_and_its_attempt_one_below_it(receiver: Receiver) -> None:
    headers, resource = {"x-receiver-key": "rk-123"}, {"deployment.environment.name": "test"}
    given = tracing(receiver, headers=headers, service="llm-gateway", resource=resource)
    async with staged(answering(served()), tracing=given) as stage:
        response = await stage.ask(chat())
        record = await stage.records.request()
    server, (attempt,) = await got(receiver, 2)

    assert receiver.headers[0]["x-receiver-key"] == "rk-123"
    assert server.resource["service.name"] == "llm-gateway"
    assert server.resource["deployment.environment.name"] == "test"
    assert (server.name, server.parent_id, server.failed) == ("POST /v1/chat/completions", "", False)
    assert (attempt.name, attempt.kind, attempt.failed) == ("chat upstream-m", 3, False)
    assert (attempt.trace_id, attempt.parent_id) == (server.trace_id, server.span_id)
    assert server.start <= attempt.start <= attempt.end <= server.end
    assert server.end - server.start == pytest.approx(record["duration_ms"] / 1000, abs=1e-4)
    assert server.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "gateway.request_id": response.headers["x-request-id"],
        "gateway.key": "caller",
        "gateway.model": "m",
        "gateway.upstream": "up",
        "gateway.attempts": 1,
        "gateway.outcome": "served",
        "gateway.end_reason": "done",
    }
    assert attempt.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "upstream-m",
        "server.address": "127.0.0.1",
        "server.port": stage.upstream.port,
        "http.response.status_code": 200,
        "gateway.upstream": "up",
        "gateway.replica": f"127.0.0.1:{stage.upstream.port}",
        "gateway.attempt": 1,
        "gateway.outcome": "served",
        "gateway.end_reason": "done",
    }


async def test_a_streams_spans_end_when_the_stream_ends_and_tell_its_first_event_and_its_tokens(
    receiver: Receiver,
) -> None:
    go_on = asyncio.Event()
    begin = send(STREAM_HEAD, frame(ROLE), frame(delta("hello")))
    rest = send(*map(frame, (delta(finish="stop"), USAGE, DONE)), b"0\r\n\r\n")
    async with (
        staged([read(), begin, wait_for(go_on), rest], tracing=tracing(receiver)) as stage,
        await stage.caller() as caller,
    ):
        await caller.send(request(chat(stream=True)))
        await caller.read_until(b"hello")
        between = time.time()
        go_on.set()
        await caller.read_until(b"\r\n0\r\n\r\n")
    server, (attempt,) = await got(receiver, 2)

    assert attempt.start + attempt.attributes["gen_ai.response.time_to_first_chunk"] <= between
    assert server.start + server.attributes["gateway.time_to_first_token"] <= between
    assert between <= attempt.end <= server.end
    assert attempt.attributes["gen_ai.request.stream"] is True
    assert (attempt.attributes["gen_ai.usage.input_tokens"], attempt.attributes["gen_ai.usage.output_tokens"]) == (5, 2)
    assert semconv.INPUT_TOKENS not in server.attributes  # or they would be counted twice


async def test_an_upstream_is_told_of_the_attempt_and_the_caller_is_the_parent_of_it_all(receiver: Receiver) -> None:
    async with staged(answering(served()), tracing=tracing(receiver)) as stage:
        await stage.ask(chat(), traceparent=PARENT, tracestate="a=1,b=2", baggage="user=somebody")
        seen = stage.upstream.requests[0]
    server, (attempt,) = await got(receiver, 2)

    assert (server.trace_id, server.parent_id) == tuple(PARENT.split("-")[1:3])
    assert len({server.parent_id, server.span_id, attempt.span_id}) == 3
    assert attempt.parent_id == server.span_id
    assert server.state == attempt.state == "a=1,b=2"
    assert seen.header("traceparent") == f"00-{TRACE_ID}-{attempt.span_id}-01"
    assert seen.header("tracestate") == "a=1,b=2"
    assert seen.header("baggage") is None


async def test_a_retry_is_a_span_of_its_own_with_what_came_of_it(one: Receiver) -> None:
    scripts = {"first": [answering(refused("503 Service Unavailable"))], "second": [answering(served())]}
    async with staged_many(scripts, tracing=tracing(one), retry={"attempts": 2}) as cast:
        await cast.ask(chat())
        parents = [cast.replicas[name][0].requests[0].header("traceparent") for name in scripts]  # type: ignore[union-attr]
    server, (failed, mended) = await got(one, 3)

    assert parents == [f"00-{span.trace_id}-{span.span_id}-03" for span in (failed, mended)]
    assert failed.failed
    assert not mended.failed
    assert not server.failed
    told = ("gateway.upstream", "gateway.attempt", "gateway.outcome", "http.response.status_code", "error.type")
    assert [failed.attributes.get(name) for name in told] == ["first", 1, "failed", 503, "upstream_unavailable"]
    assert [mended.attributes.get(name) for name in told] == ["second", 2, "served", 200, None]
    assert [span.attributes.get("http.request.resend_count") for span in (failed, mended)] == [None, 1]
    assert (server.attributes["gateway.attempts"], server.attributes["gateway.upstream"]) == (2, "second")


async def test_both_attempts_of_a_hedge_are_spans_and_only_one_was_served(one: Receiver) -> None:
    never = asyncio.Event()
    scripts = {"slow": [[forever(read(), wait_for(never))]], "quick": [answering(served(stream=True))]}
    models = {"m": {"targets": [{"upstream": name} for name in scripts], "hedge": {"after": 0.01}}}
    async with staged_many(scripts, tracing=tracing(one), models=models) as cast:
        await cast.ask(chat(stream=True))
    server, attempts = await got(one, 3)

    assert server.attributes["gateway.hedge"] == "second"
    outcomes = {span.attributes["gateway.upstream"]: span.attributes["gateway.outcome"] for span in attempts}
    assert outcomes == {"slow": "abandoned", "quick": "served"}
    assert not any(span.failed for span in attempts)
    slow, quick = attempts
    assert slow.start < quick.start < slow.end <= server.end
    assert (semconv.OUTPUT_TOKENS in slow.attributes, semconv.OUTPUT_TOKENS in quick.attributes) == (False, True)


async def test_a_stream_that_breaks_is_an_error_under_status_200(one: Receiver) -> None:
    script = [read(), send(STREAM_HEAD, frame(delta("hel"))), reset()]
    async with staged(script, tracing=tracing(one)) as stage:
        response = await stage.ask(chat(stream=True))
    server, (attempt,) = await got(one, 2)

    assert response.status == 200
    assert server.failed
    assert attempt.failed
    assert (
        server.attributes["error.type"] == attempt.attributes["error.type"] == attempt.attributes["gateway.end_reason"]
    )
    assert server.attributes["http.response.status_code"] == 200


async def test_a_call_that_its_caller_leaves_is_nobodys_error(one: Receiver) -> None:
    never = asyncio.Event()
    script = [read(), send(STREAM_HEAD, frame(delta("hel"))), wait_for(never)]
    async with staged(script, tracing=tracing(one)) as stage, await stage.caller() as caller:
        await caller.send(request(chat(stream=True)))
        await caller.read_until(b"hel")
    server, (attempt,) = await got(one, 2)

    assert not server.failed
    assert not attempt.failed
    assert server.attributes["gateway.outcome"] == attempt.attributes["gateway.outcome"] == "abandoned"
    assert semconv.OUTPUT_TOKENS not in attempt.attributes  # nobody has counted them


@pytest.mark.parametrize(
    ("path", "key", "name", "status"),
    [
        ("/v1/models", KEY, "GET /v1/models", 200),
        ("/v1/models/m", KEY, "GET /v1/models/{id}", 200),
        ("/models/sk-planted", KEY, "GET /models/{id}", 404),
        ("/v1/sk-planted", KEY, "GET", 404),
        ("/v1/models", "sk-planted", "GET /v1/models", 401),
        ("/v1/chat/completions", KEY, "GET /v1/chat/completions", 405),
    ],
)
async def test_what_reaches_no_upstream_is_one_span_without_what_the_caller_wrote(
    path: str, key: str, name: str, status: int, one: Receiver
) -> None:
    async with staged(answering(served()), tracing=tracing(one)) as stage:
        await stage.get(path, key=key)
    server, attempts = await got(one, 1)

    assert (server.name, server.attributes["http.response.status_code"]) == (name, status)
    assert attempts == []
    assert not server.failed
    assert b"planted" not in one.raw


async def test_a_failure_of_the_upstreams_is_an_error_of_the_request(one: Receiver) -> None:
    async with staged(answering(refused("500 Internal Server Error")), tracing=tracing(one)) as stage:
        response = await stage.ask(chat())
    server, (attempt,) = await got(one, 2)

    assert response.status == 502
    assert (server.failed, attempt.failed) == (True, True)
    assert server.attributes["error.type"] == "upstream_error"


@pytest.mark.parametrize(
    ("ratio", "parent", "sampled"), [(0.0, "", False), (1.0, "", True), (0.0, PARENT, True), (1.0, UNSAMPLED, False)]
)
async def test_the_callers_decision_on_sampling_stands_over_the_ratio(
    ratio: float, parent: str, sampled: bool, one: Receiver
) -> None:
    async with staged(answering(served()), tracing=tracing(one, ratio=ratio)) as stage:
        await stage.ask(chat(), traceparent=parent)
        told = stage.upstream.requests[0].header("traceparent")

    assert told is not None
    assert told.split("-")[2] not in parent
    assert told.split("-")[3] in (("01", "03") if sampled else ("00", "02"))
    assert len(one.spans()) == (2 if sampled else 0)  # the stage has closed, and with it all is sent


async def test_no_prompt_no_answer_and_no_key_is_in_a_span(receiver: Receiver) -> None:
    async with staged(
        answering(
            served(content="answer-planted"),
            send(*streamed(delta("stream-planted"), delta(finish="stop"), DONE)),
            refused("400 Bad Request", message="refusal-planted", code="code-planted"),
            refused("401 Unauthorized", message="auth-planted", code="auth-code-planted"),
            refused("500 Internal Server Error", message="failure-planted"),
            refused("302 Found", "location: http://host-planted/"),
        ),
        tracing=tracing(receiver, headers={"authorization": "Bearer receiver-planted"}),
    ) as stage:
        for number in range(6):
            body = chat(
                stream=number == 1,
                messages=[{"role": "user", "content": "prompt-planted"}],
                user="user-planted",
                metadata={"a": "metadata-planted"},
            )
            await stage.ask(body, "/v1/chat/completions?query-planted=1", cookie="cookie-planted")
    assert len(receiver.spans()) == 12
    sent = receiver.raw
    assert b"planted" not in sent
    assert KEY.encode() not in sent
    assert UPSTREAM_KEY.encode() not in sent


@pytest.mark.parametrize(
    ("traceparent", "tracestate", "passed"),
    [
        (PARENT, "", (PARENT, None)),
        (PARENT, "vendor=opaque, other@sys=1", (PARENT, "vendor=opaque, other@sys=1")),
        (UNSAMPLED, "", (UNSAMPLED, None)),
        ("01" + PARENT[2:] + "-more", "", ("01" + PARENT[2:] + "-more", None)),
        (PARENT, "not a state", (PARENT, None)),
        ("nonsense", "a=1", (None, None)),
        ("", "a=1", (None, None)),
    ],
)
async def test_where_nobody_traces_here_the_callers_context_goes_on_as_it_came_if_it_is_well_formed(
    traceparent: str, tracestate: str, passed: tuple[str | None, str | None]
) -> None:
    async with staged(answering(served())) as stage:
        await stage.ask(chat(), traceparent=traceparent, tracestate=tracestate, baggage="user=somebody")
        seen = stage.upstream.requests[0]
    assert (seen.header("traceparent"), seen.header("tracestate")) == passed
    assert seen.header("baggage") is None


async def test_where_nobody_traces_no_upstream_is_told_of_a_trace() -> None:
    async with staged(answering(served())) as stage:
        await stage.ask(chat())
        assert not re.search(rb"(?i)traceparent|tracestate", stage.upstream.requests[0].raw)


async def test_every_attempt_of_a_callers_trace_carries_it() -> None:
    scripts = {"first": [answering(refused("503 Service Unavailable"))], "second": [answering(served())]}
    async with staged_many(scripts, retry={"attempts": 2}) as cast:
        await cast.ask(chat(), traceparent=PARENT)
        seen = [cast.replicas[name][0].requests[0].header("traceparent") for name in scripts]  # type: ignore[union-attr]
    assert seen == [PARENT, PARENT]


async def test_a_receiver_that_is_down_costs_calls_nothing_and_is_counted(one: Receiver) -> None:
    given = tracing(one, endpoint="http://127.0.0.1:9", timeout=0.2)  # discard: nobody listens
    async with staged(answering(served()), tracing=given) as stage:
        for _ in range(3):
            assert (await stage.ask(chat())).status == 200
        spans = stage.gateway.spans
        assert spans is not None
        spans.close()
        assert await asyncio.to_thread(spans.join, 10)
        assert stage.sample("gateway_trace_spans_lost") == 6
