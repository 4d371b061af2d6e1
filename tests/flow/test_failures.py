"""What goes wrong at an upstream, and what the caller is told: a status, OpenAI's words, and no hint of who we are."""

import asyncio

import orjson
import pytest

from gateway.errors import ShuttingDown
from tests.support.stage import KEY, UPSTREAM_KEY, chat, request, staged
from tests.support.upstream import Action, Peer, blackhole, close, forever, read, reply, reset, send, unused_port

JSON = ["content-type: application/json"]
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


def openai_error(**members: object) -> bytes:
    error = {"message": "m", "type": "t", "param": None, "code": None, **members}
    return orjson.dumps({"error": error})


@pytest.mark.parametrize(
    ("theirs", "body", "ours", "code", "outcome"),
    [
        ("400 Bad", openai_error(code="context_length_exceeded"), 400, "context_length_exceeded", "rejected"),
        ("404 Not", openai_error(code="model_not_found"), 404, "model_not_found", "rejected"),
        ("413 Big", b"too big", 413, None, "rejected"),
        ("422 Odd", b'{"detail":"odd"}', 422, None, "rejected"),
        ("409 Con", openai_error(), 409, None, "rejected"),
        ("401 No", openai_error(message=f"bad key {UPSTREAM_KEY}"), 502, "upstream_auth", "unauthorised"),
        ("403 No", b"", 502, "upstream_auth", "unauthorised"),
        ("403 No", openai_error(code="model_not_found"), 404, "model_not_found", "rejected"),
        ("429 Slow", openai_error(code="rate_limit_exceeded"), 429, "rate_limit_exceeded", "overloaded"),
        ("429 Dry", openai_error(type="insufficient_quota"), 503, "upstream_quota", "unauthorised"),
        ("500 Oops", b"Traceback at 10.0.0.7", 502, "upstream_error", "failed"),
        ("502 Bad", b"<html>", 502, "upstream_error", "failed"),
        ("503 Out", b"", 503, "upstream_unavailable", "failed"),
        ("503 Full\r\nretry-after: 9", b"", 503, "upstream_overloaded", "overloaded"),
        ("529 Full", b"", 503, "upstream_overloaded", "overloaded"),
        ("504 Late", b"", 504, "upstream_timeout", "timed_out"),
        ("408 Late", b"", 502, "upstream_error", "failed"),
        ("302 Gone\r\nlocation: http://169.254.169.254/", b"", 502, "upstream_redirect", "failed"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_status_is_told_as_what_it_means(
    theirs: str, body: bytes, ours: int, code: str | None, outcome: str, stream: bool
) -> None:
    async with staged([read(), reply(body, status=theirs, headers=JSON)]) as stage:
        response = await stage.ask(chat(stream=stream))

        assert (response.status, response.error["code"]) == (ours, code)
        assert response.headers["x-should-retry"] == "false"
        assert response.headers["x-gateway-attempts"] == "1"
        for secret in (UPSTREAM_KEY, "10.0.0.7", "127.0.0.1"):
            assert secret not in response.body.decode()
        assert (await stage.records.request())["outcome"] == outcome
        assert len(stage.upstream.requests) == 1
        if ours in (429, 503):
            assert {"retry-after", "retry-after-ms"} <= response.headers.keys()


async def test_retry_after_is_passed_on() -> None:
    async with staged([read(), reply(b"", status="429 Slow", headers=["retry-after: 7"])]) as stage:
        assert (await stage.ask(chat())).headers["retry-after"] == "7"


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ([close()], "upstream_invalid_response"),
        ([reset()], "upstream_reset"),
        ([send(b"HTTP/1.1 200 OK\r\ncontent-len"), close()], "upstream_invalid_response"),
        ([send(b"nonsense\r\n\r\n")], "upstream_invalid_response"),
        ([send(OK + b"content-length: 100\r\n\r\n{}"), close()], "upstream_truncated"),
        ([send(OK + b"content-length: 3\r\n\r\n{}x")], "upstream_invalid_response"),
        ([send(OK + b"content-length: 0\r\n\r\n")], "upstream_invalid_response"),
        ([reply(b"<html>", headers=["content-type: text/html"])], "upstream_bad_content_type"),
        ([reply(b"{}", headers=[*JSON, "content-encoding: gzip"])], "upstream_bad_encoding"),
        ([reply(b'{"error":{"message":"m"}}', headers=JSON)], "upstream_error"),
        ([send(OK + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n")], "upstream_invalid_response"),
        ([send(OK + b"x: " + b"a" * 70_000 + b"\r\n\r\n")], "upstream_invalid_response"),
    ],
)
async def test_an_answer_that_is_none_is_a_502(script: list[Action], code: str) -> None:
    async with staged([read(), *script]) as stage:
        response = await stage.ask(chat())

        assert (response.status, response.error["code"]) == (502, code)
        await stage.settled()


async def test_too_large_an_answer_is_not_gathered() -> None:
    async def flood(peer: Peer) -> None:
        while True:
            peer.writer.write(b"1" * (1 << 20))
            await peer.writer.drain()

    async with staged([read(), send(OK + b"\r\n"), flood]) as stage:
        assert (await stage.ask(chat())).error["code"] == "upstream_response_too_large"
        await stage.settled()


async def test_a_refused_connection_is_a_502() -> None:
    url = f"http://127.0.0.1:{unused_port()}/v1"
    async with staged([read()], upstream={"url": url}) as stage:
        response = await stage.ask(chat())

        assert (response.status, response.error["code"]) == (502, "upstream_unreachable")


async def test_a_name_that_does_not_exist_is_a_502() -> None:
    async with staged([read()], upstream={"url": "http://nowhere.invalid/v1"}) as stage:
        assert (await stage.ask(chat())).error["code"] == "upstream_dns"


async def test_a_server_that_does_not_speak_tls_is_a_502() -> None:
    async with staged([send(b"HTTP/1.1 400 Bad Request\r\n\r\n")]) as stage:
        url = f"https://127.0.0.1:{stage.upstream.port}/v1"
        async with staged([read()], upstream={"url": url}) as other:
            assert (await other.ask(chat())).error["code"] == "upstream_tls"


async def test_a_connection_that_is_never_made_is_a_504() -> None:
    with blackhole() as url:
        async with staged([read()], upstream={"url": f"{url}/v1"}, timeouts={"connect": 0.05}) as stage:
            response = await stage.ask(chat())

            assert (response.status, response.error["code"]) == (504, "upstream_connect_timeout")


@pytest.mark.parametrize(
    ("sent", "timeouts", "code"),
    [
        (b"", {"reply": 0.05}, "upstream_first_byte_timeout"),
        (OK + b"content-length: 9\r\n\r\n{", {"idle": 0.05}, "upstream_idle_timeout"),
        (b"", {"total": 0.05}, "upstream_timeout"),
    ],
)
async def test_a_plain_reply_that_does_not_come_is_a_504(sent: bytes, timeouts: dict[str, float], code: str) -> None:
    async with staged([read(), send(sent)], timeouts=timeouts) as stage:
        response = await stage.ask(chat())

        assert (response.status, response.error["code"]) == (504, code)
        assert (await stage.records.request())["outcome"] == "timed_out"
        await stage.settled()


async def test_an_upstream_with_all_that_it_may_have_is_a_503_that_says_when_to_come_back() -> None:
    upstream = {"concurrency": {"limit": 1, "wait": 0.02}}
    async with staged([read()], upstream=upstream) as stage, await stage.caller() as first:
        await first.send(request(chat()))
        await stage.upstream.wait_until(lambda: len(stage.upstream.requests) == 1)
        response = await stage.ask(chat())

        assert (response.status, response.error["code"]) == (503, "overloaded")
        assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("1", "1000")
        assert (response.headers["x-gateway-attempts"], response.headers["x-gateway-upstream"]) == ("0", "up")
        assert "x-should-retry" not in response.headers  # nothing was tried
        assert len(stage.upstream.requests) == 1
        assert (await stage.records.request())["outcome"] == "overloaded"
        assert stage.sample("gateway_sheds_total", upstream="up") == 1


async def test_a_full_pool_is_a_503_that_says_when_to_come_back() -> None:
    upstream = {"transport": {"max_connections": 1}}
    models = {"*": {"targets": [{"upstream": "up"}]}}
    async with (
        staged([read()], upstream=upstream, models=models, timeouts={"pool": 0.02}) as stage,
        await stage.caller() as first,
    ):
        # what is no call does not count among the calls, but has a connection
        await first.send(f"GET /v1/models HTTP/1.1\r\nhost: g\r\nauthorization: Bearer {KEY}\r\n\r\n".encode())
        await stage.upstream.wait_until(lambda: len(stage.upstream.requests) == 1)
        response = await stage.ask(chat())

        assert (response.status, response.error["code"]) == (503, "pool_exhausted")
        assert response.headers["retry-after"] == "1"
        assert (await stage.records.request())["attempts"] == 1
        assert stage.sample("gateway_upstream_attempts_total", outcome="overloaded") == 1
        assert stage.sample("gateway_sheds_total") == 0


async def test_a_fault_of_ours_is_a_500_with_the_request_id_and_a_trace_without_values() -> None:
    async with staged([read()]) as stage:

        async def broken(*_: object) -> None:
            raise KeyError("secret value")

        stage.gateway.fleet.upstreams["up"].transport.handle_async_request = broken  # type: ignore[method-assign,assignment]
        response = await stage.ask(chat(), x_request_id="r-1")

        assert (response.status, response.error["code"]) == (500, "internal_error")
        assert "r-1" in response.error["message"]
        assert response.headers["x-should-retry"] == "false"
        assert "secret" not in response.body.decode()


async def test_many_calls_at_once_each_get_their_own_answer() -> None:
    async def echo(peer: Peer) -> None:
        head = await peer.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        number = orjson.loads(await peer.reader.readexactly(length))["seed"]
        await reply(b'{"n":%d}' % number, headers=JSON)(peer)

    async with staged([forever(echo)]) as stage:
        answers = await asyncio.gather(*(stage.ask(chat(seed=number)) for number in range(50)))

        assert [orjson.loads(answer.body)["n"] for answer in answers] == list(range(50))


@pytest.mark.parametrize("leave", ["reset", "drain"])
async def test_a_plain_answer_that_is_cut_on_its_way_is_not_recorded_as_served(leave: str) -> None:
    body = orjson.dumps({"x": "y" * (8 << 20)})
    async with staged([read(), reply(body, headers=JSON)]) as stage:
        async with await stage.caller(receive_buffer=4096) as caller:
            await caller.send(request(chat()))
            await caller.read_until(b"\r\n\r\n")
            if leave == "reset":
                caller.reset()
            else:
                next(iter(stage.gateway.api.open)).interrupt(ShuttingDown("bye"))
            line = await stage.records.request()

        assert line["outcome"] == ("abandoned" if leave == "reset" else "overloaded")
        assert line["end_reason"] == ("caller_left" if leave == "reset" else "server_shutting_down")
        # the upstream did its part; it is the call that was not served
        assert stage.sample("gateway_upstream_attempts_total", outcome="served") == 1
        assert stage.sample("gateway_upstream_attempts_total") == 1


@pytest.mark.parametrize("date", ["Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "a" * 5000, "-1", "1e9"])
async def test_an_absurd_retry_after_is_no_fault_of_ours(date: str) -> None:
    async with staged([read(), reply(b"", status="429 Slow", headers=[f"retry-after: {date}"])]) as stage:
        response = await stage.ask(chat())

        assert response.status == 429
        assert 0 <= int(response.headers["retry-after"]) <= 1e9
