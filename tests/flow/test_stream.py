"""A stream from socket to socket: every byte, every end, and what is counted of it."""

import asyncio

import orjson
import pytest

from gateway import errors
from tests.support.stage import (
    DONE,
    END,
    ROLE,
    STREAM_HEAD,
    USAGE,
    chat,
    delta,
    event,
    frame,
    request,
    staged,
    streamed,
)
from tests.support.upstream import close, forever, read, reply, reset, send, wait_closed, wait_for

STREAM = chat(stream=True)
WITH_USAGE = chat(stream=True, stream_options={"include_usage": True})
HELLO = (ROLE, delta("Hel"), delta("lo"), delta(finish="stop"))
BEGUN = ROLE + delta("Hel")  # a role alone begins nothing


def told(body: bytes) -> dict[str, str]:
    """The error that ends a stream in-band."""
    assert body.endswith(b"\n\n")
    assert b"[DONE]" not in body
    last = body[:-2].rpartition(b"\n\n")[2]
    error: dict[str, str] = orjson.loads(last.removeprefix(b"data: "))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def test_a_stream_passes_byte_for_byte() -> None:
    events = [b": hello\n\n", *HELLO, event('{"choices": [], "x": 123456789012345678901234567890}'), DONE]
    async with staged([read(), send(*streamed(*events))]) as stage:
        response = await stage.ask(STREAM)

        assert response.body == b"".join(events)
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["x-gateway-upstream"] == "up"


async def test_an_event_without_data_is_no_event() -> None:
    events = [b"data:\n\n", b"id: 1\n\n", *HELLO, b"data: \n\n", DONE]
    async with staged([read(), send(*streamed(*events))]) as stage:
        assert (await stage.ask(STREAM)).body == b"".join(events)


async def test_each_event_is_here_before_the_next_one_is_sent() -> None:
    sent = (BEGUN, *HELLO[2:])
    seen = [asyncio.Event() for _ in sent]
    script = [read(), send(STREAM_HEAD)]
    for one, gate in zip(sent, seen, strict=True):
        script += [send(frame(one)), wait_for(gate)]
    async with staged([*script, send(frame(DONE), END)]) as stage, await stage.caller() as caller:
        await caller.send(request(STREAM))
        for one, gate in zip(sent, seen, strict=True):
            assert (await caller.read_until(one)).endswith(one)
            gate.set()
        await caller.read_until(DONE)


async def test_a_stream_is_the_same_wherever_the_reads_cut_it() -> None:
    body = "".join(
        f"{piece}\r\n\r\n" for piece in ('data: {"choices":[],"a":"ü\u2028"}', ": c", "data: [DONE]")
    ).encode()
    raw = STREAM_HEAD + frame(body) + END
    cuts = range(len(STREAM_HEAD), len(raw))
    script = [action for at in cuts for action in (read(), send(raw[:at], raw[at:]))]
    async with staged(script) as stage:
        for _ in cuts:
            # [DONE] is complete with the CR of its blank line, and nobody waits for the LF that may follow
            assert (await stage.ask(STREAM)).body in (body, body[:-1])


async def test_usage_is_asked_for_and_kept_from_a_caller_who_did_not() -> None:
    upstream = [ROLE, delta("a", usage=None), delta(finish="stop", usage=None), USAGE, DONE]
    async with staged([read(), send(*streamed(*upstream))]) as stage:
        response = await stage.ask(STREAM)

        assert orjson.loads(stage.upstream.requests[0].body)["stream_options"] == {"include_usage": True}
        assert response.body == b"".join([ROLE, delta("a"), delta(finish="stop"), DONE])
        line = await stage.records.request()
        assert (line["input_tokens"], line["output_tokens"], line["usage_estimated"]) == (5, 2, False)


async def test_a_caller_who_asked_for_usage_gets_all_of_it() -> None:
    upstream = [ROLE, delta("a", usage=None), USAGE, DONE]
    async with staged([read(), send(*streamed(*upstream))]) as stage:
        response = await stage.ask(WITH_USAGE)

        assert response.body == b"".join(upstream)
        assert orjson.loads(stage.upstream.requests[0].body) == WITH_USAGE | {"model": "upstream-m"}


async def test_usage_that_nobody_reported_is_estimated_and_marked() -> None:
    async with staged([read(), send(*streamed(*HELLO, DONE))]) as stage:
        await stage.ask(STREAM)

        line = await stage.records.request()
        assert line["usage_estimated"]
        assert line["output_tokens"] > 0


async def test_the_record_of_a_stream_has_its_times_and_its_end() -> None:
    async with staged([read(), send(*streamed(*HELLO, USAGE, DONE))]) as stage:
        await stage.ask(STREAM)

        line = await stage.records.request()
        assert 0 < line["ttft_ms"] <= line["duration_ms"]
        assert (line["outcome"], line["end_reason"]) == ("served", "done")
        labels = {"model": "m", "upstream": "up"}
        assert stage.sample("gateway_time_to_first_token_seconds_count", **labels) == 1
        assert stage.sample("gateway_time_per_output_token_seconds_count", **labels) == 1
        assert stage.sample("gateway_stream_ends_total", reason="done", **labels) == 1


async def test_a_finished_stream_without_done_is_given_one() -> None:
    async with staged([read(), send(*streamed(*HELLO, USAGE))]) as stage:
        assert (await stage.ask(STREAM)).body == b"".join([*HELLO, DONE])


async def test_what_follows_done_is_dropped() -> None:
    async with staged([read(), send(STREAM_HEAD, frame(ROLE + DONE + delta("more")), frame(delta("more")))]) as stage:
        assert (await stage.ask(STREAM)).body == ROLE + DONE
        await stage.settled()


async def test_after_done_the_connection_upstream_is_used_again() -> None:
    async with staged([forever(read(), send(*streamed(ROLE, DONE)))]) as stage:
        for _ in range(3):
            await stage.ask(STREAM)

        assert stage.upstream.accepted == 1


@pytest.mark.parametrize(
    ("rest", "code"),
    [
        ([END], "upstream_stream_incomplete"),
        ([frame(b'data: {"choices":'), END], "upstream_stream_incomplete"),
        ([frame(event("{nonsense"))], "upstream_invalid_event"),
        ([frame(b"data: " + b"a" * (1 << 20))], "upstream_event_too_large"),
        ([frame(event({"error": {"message": "engine died at 10.0.0.7", "code": 500}}) + DONE), END], "upstream_error"),
        ([frame(event({"error": {"message": "busy", "code": 503}}))], "upstream_unavailable"),
        ([frame(event({"error": {"message": "busy", "code": 429}}))], "rate_limit_exceeded"),
    ],
)
async def test_a_stream_that_breaks_ends_with_an_error_in_band(rest: list[bytes], code: str) -> None:
    async with staged([read(), send(STREAM_HEAD, frame(ROLE), frame(delta("a")), *rest)]) as stage:
        response = await stage.ask(STREAM)

        assert response.status == 200
        assert response.body.startswith(ROLE + delta("a"))
        error = told(response.body)
        assert error["code"] == code
        assert "10.0.0.7" not in error["message"]
        line = await stage.records.request()
        assert line["status"] == 200
        assert line["outcome"] == ("overloaded" if code == "rate_limit_exceeded" else "failed")
        assert stage.sample("gateway_stream_ends_total", reason=code) == 1
        await stage.settled()


@pytest.mark.parametrize("leave", [close(), reset()])
async def test_a_connection_that_is_cut_mid_stream_is_told(leave: object) -> None:
    async with staged([read(), send(STREAM_HEAD, frame(ROLE), frame(delta("a"))), leave]) as stage:  # type: ignore[list-item]
        assert told((await stage.ask(STREAM)).body)["code"] == "upstream_stream_interrupted"


async def test_events_that_came_with_a_broken_one_are_passed_on_first() -> None:
    async with staged([read(), send(STREAM_HEAD, frame(ROLE), frame(delta("a") + event("{")))]) as stage:
        assert (await stage.ask(STREAM)).body.startswith(ROLE + delta("a"))


@pytest.mark.parametrize(
    ("first", "status", "code"),
    [
        (event({"error": {"message": "no", "type": "server_error", "code": 500}}), 502, "upstream_error"),
        (event({"error": {"message": "full", "code": 503}}), 503, "upstream_unavailable"),
        (event({"error": {"message": "too long", "type": "BadRequestError", "code": 400}}), 400, None),
        (event("{nonsense"), 502, "upstream_invalid_event"),
        (b": comment\n\n", 502, "upstream_stream_incomplete"),
        (b"", 502, "upstream_stream_incomplete"),
    ],
)
@pytest.mark.parametrize("role", [b"", ROLE, event({"choices": []}) + ROLE])
async def test_a_failure_before_there_is_anything_in_a_stream_is_a_status(
    role: bytes, first: bytes, status: int, code: str | None
) -> None:
    frames = [frame(piece) for piece in (role, first) if piece]
    async with staged([read(), send(STREAM_HEAD, *frames, END)]) as stage:
        response = await stage.ask(STREAM)

        assert (response.status, response.error["code"]) == (status, code)
        assert response.headers["x-should-retry"] == "false"
        await stage.settled()


async def test_a_plain_reply_to_a_stream_is_given_as_events() -> None:
    answer = {
        "id": "c-1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }
    json = reply(orjson.dumps(answer), headers=["content-type: application/json"])
    async with staged([read(), json]) as stage:
        response = await stage.ask(STREAM)

        first, last, rest = response.body.split(b"\n\n")
        chunk = orjson.loads(first.removeprefix(b"data: "))
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["choices"][0]["delta"] == {"role": "assistant", "content": "hi"}
        assert "usage" not in chunk
        assert (last, rest) == (b"data: [DONE]", b"")
        assert (await stage.records.request())["input_tokens"] == 1


async def test_events_to_a_plain_call_are_refused() -> None:
    async with staged([read(), send(*streamed(ROLE, DONE))]) as stage:
        response = await stage.ask(chat())

        assert (response.status, response.error["code"]) == (502, "upstream_bad_content_type")


async def test_a_caller_who_hears_nothing_gets_a_200_and_pings_and_then_the_stream() -> None:
    go_on = asyncio.Event()
    async with (
        staged([read(), wait_for(go_on), send(*streamed(*HELLO, DONE))], timeouts={"ping": 0.02}) as stage,
        await stage.caller() as caller,
    ):
        await caller.send(request(STREAM))
        await caller.read_until(b": ping\n\n")
        await caller.read_until(b": ping\n\n")
        go_on.set()

        assert b"200" not in await caller.read_until(DONE)
        assert (await stage.records.request())["outcome"] == "served"


async def test_a_failure_after_pings_is_told_in_band() -> None:
    go_on = asyncio.Event()
    failed = reply(b"oops", status="500 Broken")
    async with (
        staged([read(), wait_for(go_on), failed], timeouts={"ping": 0.02}) as stage,
        await stage.caller() as caller,
    ):
        await caller.send(request(STREAM))
        await caller.read_until(b": ping\n\n")
        go_on.set()

        body = await caller.read_until(b"0\r\n\r\n")
        assert b'"code":"upstream_error"' in body
        assert b"[DONE]" not in body


async def test_pings_go_on_within_a_stream_that_is_silent() -> None:
    async with staged([read(), send(STREAM_HEAD, frame(BEGUN))], timeouts={"ping": 0.02}) as stage:
        async with await stage.caller() as caller:
            await caller.send(request(STREAM))
            await caller.read_until(BEGUN)
            await caller.read_until(b": ping\n\n")
            await caller.read_until(b": ping\n\n")
        await stage.settled()


@pytest.mark.parametrize(
    ("script", "timeouts", "code"),
    [
        ([], {"first_token": 0.05}, "upstream_first_byte_timeout"),
        ([STREAM_HEAD], {"first_token": 0.05}, "upstream_first_byte_timeout"),
        ([STREAM_HEAD, frame(b": c\n\n")], {"first_token": 0.05}, "upstream_first_byte_timeout"),
        ([], {"total": 0.05}, "upstream_timeout"),
    ],
)
async def test_silence_before_the_first_event_is_a_504(
    script: list[bytes], timeouts: dict[str, float], code: str
) -> None:
    async with staged([read(), send(*script)], timeouts=timeouts) as stage:
        response = await stage.ask(STREAM)

        assert (response.status, response.error["code"]) == (504, code)
        await stage.settled()


ENDLESS = [
    ({"idle": 0.05}, "upstream_idle_timeout"),
    ({"stream": 0.05, "first_token": 0.04}, "upstream_stream_timeout"),
]


@pytest.mark.parametrize(("timeouts", "code"), ENDLESS)
async def test_a_stream_that_falls_silent_or_never_ends_is_told_in_band(timeouts: dict[str, float], code: str) -> None:
    async with staged([read(), send(STREAM_HEAD, frame(BEGUN))], timeouts=timeouts) as stage:
        assert told((await stage.ask(STREAM)).body)["code"] == code
        await stage.settled()


@pytest.mark.parametrize(("timeouts", "code"), ENDLESS)
async def test_one_that_does_so_with_nothing_but_its_role_is_a_504(timeouts: dict[str, float], code: str) -> None:
    async with staged([read(), send(STREAM_HEAD, frame(ROLE))], timeouts=timeouts) as stage:
        response = await stage.ask(STREAM)

        assert (response.status, response.error["code"]) == (504, code)
        await stage.settled()


async def test_an_upstreams_comments_do_not_count_as_progress() -> None:
    chatter = forever(send(frame(b": still here\n\n")))
    async with staged([read(), send(STREAM_HEAD, frame(BEGUN)), chatter], timeouts={"idle": 0.1}) as stage:
        assert told((await stage.ask(STREAM)).body)["code"] == "upstream_idle_timeout"


async def test_they_do_not_before_there_is_anything_in_the_stream_either() -> None:
    chatter = forever(send(frame(b": still here\n\n")))
    async with staged([read(), send(STREAM_HEAD, frame(ROLE)), chatter], timeouts={"idle": 0.1}) as stage:
        assert (await stage.ask(STREAM)).status == 504
        assert (await stage.records.request())["outcome"] == "timed_out"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_who_leaves_before_the_reply_cancels_the_upstream(stream: bool) -> None:
    async with staged([read(), wait_closed()]) as stage:
        async with await stage.caller() as caller:
            await caller.send(request(chat(stream=stream)))
            await stage.upstream.wait_until(lambda: len(stage.upstream.requests) == 1)
        await stage.settled()

        line = await stage.records.request()
        assert (line["status"], line["outcome"], line["end_reason"]) == (499, "abandoned", "caller_left")
        assert stage.sample("gateway_client_disconnects_total", phase="upstream") == 1


async def test_a_caller_who_leaves_mid_stream_cancels_the_upstream_and_is_counted() -> None:
    async with staged([read(), send(STREAM_HEAD, frame(ROLE), frame(delta("a"))), wait_closed()]) as stage:
        async with await stage.caller() as caller:
            await caller.send(request(STREAM))
            await caller.read_until(delta("a"))
        await stage.settled()

        line = await stage.records.request()
        assert (line["status"], line["outcome"], line["usage_estimated"]) == (200, "abandoned", True)
        assert line["output_tokens"] > 0
        assert stage.sample("gateway_client_disconnects_total", phase="streaming") == 1
        assert stage.sample("gateway_stream_ends_total", reason="caller_left") == 1


async def test_a_caller_who_leaves_while_sending_its_body_is_recorded() -> None:
    async with staged([read()]) as stage:
        async with await stage.caller() as caller:
            await caller.send(request(chat())[:-5])
        line = await stage.records.request()

        assert (line["status"], line["outcome"]) == (499, "abandoned")
        assert stage.sample("gateway_client_disconnects_total", phase="body") == 1


async def test_a_call_that_is_open_when_the_drain_ends_is_told() -> None:
    async with staged([read(), send(STREAM_HEAD, frame(BEGUN))]) as stage, await stage.caller() as caller:
        await caller.send(request(STREAM))
        await caller.read_until(BEGUN)
        for exchange in stage.gateway.api.open:
            exchange.interrupt(errors.ShuttingDown("bye"))

        body = await caller.read_until(b"0\r\n\r\n")
        assert b'"code":"server_shutting_down"' in body
        assert b"[DONE]" not in body


async def test_a_slow_reader_slows_the_upstream_and_holds_little() -> None:
    piece = frame(delta("x" * 60_000))
    sent = 0

    async def flood(peer: object) -> None:
        nonlocal sent
        while True:
            peer.writer.write(piece)  # type: ignore[attr-defined]
            await peer.writer.drain()  # type: ignore[attr-defined]
            sent += len(piece)
            await asyncio.sleep(0)

    async with staged([read(), send(STREAM_HEAD), flood]) as stage:
        async with await stage.caller(receive_buffer=4096) as caller:
            await caller.send(request(STREAM))
            before = -1
            while before != sent:
                before = sent
                for _ in range(2000):
                    await asyncio.sleep(0)
            # what the kernel's own buffers on both legs took is not the gateway's to bound
            assert sent < 16 << 20
        await stage.settled()


@pytest.mark.parametrize(
    ("events", "complete"),
    [
        ([(0, "a", None), (1, "b", None), (0, None, "stop"), (1, " is not", None)], False),
        ([(0, "a", None), (0, None, "stop"), (1, "b", None), (1, None, "length")], True),
        ([(0, None, "stop"), (1, None, "stop"), (1, None, None), (0, None, None), (1, None, None)], True),
    ],
)
async def test_without_done_a_stream_is_complete_when_every_choice_is(
    events: list[tuple[int, str | None, str | None]], complete: bool
) -> None:
    sent = [
        event({"choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}]})
        for index, text, finish in events
    ]
    async with staged([read(), send(*streamed(*sent))]) as stage:
        body = (await stage.ask(chat(stream=True, n=2))).body

        assert body.endswith(DONE) == complete
        assert (b"upstream_stream_incomplete" in body) != complete


async def test_a_flat_error_within_a_stream_is_an_error() -> None:
    flat = event({"object": "error", "message": "boom", "type": "x", "param": None, "code": 500})
    async with staged([read(), send(STREAM_HEAD, frame(BEGUN), frame(flat + DONE), END)]) as stage:
        assert told((await stage.ask(STREAM)).body)["code"] == "upstream_error"


async def test_the_time_of_a_stream_ends_with_its_last_byte_to_the_caller() -> None:
    async with staged([read(), send(STREAM_HEAD, frame(ROLE + DONE))]) as stage:
        await stage.ask(STREAM)

        # the upstream leaves its body open, which is waited for a while, but not by the caller
        assert (await stage.records.request())["duration_ms"] < 900


async def test_a_stream_goes_by_the_timeouts_of_the_upstream_that_serves_it() -> None:
    async with staged([read(), send(STREAM_HEAD, frame(BEGUN))]) as serving:
        url = f"{serving.upstream.url}/v1"
        upstreams = {
            "hasty": {"kind": "openai", "url": url, "timeouts": {"stream": 0.01, "ping": 0.01}},
            "chosen": {"kind": "openai", "url": url, "timeouts": {"idle": 0.05}},
        }
        models = {"m": {"targets": [{"upstream": "hasty", "weight": 0}, {"upstream": "chosen"}]}}
        async with staged([read()], upstreams=upstreams, models=models) as stage:
            body = (await stage.ask(STREAM)).body
            assert told(body)["code"] == "upstream_idle_timeout"
            assert b"ping" not in body


async def test_deadlines_hold_with_httpxs_own_engine_too() -> None:
    chatter = forever(send(frame(b": c\n\n")))
    upstream = {"transport": {"engine": "httpx"}}
    async with staged([read(), send(STREAM_HEAD), chatter], upstream=upstream, timeouts={"first_token": 0.1}) as stage:
        response = await stage.ask(STREAM)

        assert (response.status, response.error["code"]) == (504, "upstream_first_byte_timeout")


async def test_a_stream_passes_with_httpxs_own_engine_too() -> None:
    upstream = {"transport": {"engine": "httpx"}}
    async with staged([read(), send(*streamed(*HELLO, USAGE, DONE))], upstream=upstream) as stage:
        assert (await stage.ask(STREAM)).body == b"".join([*HELLO, DONE])
