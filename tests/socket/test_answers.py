"""How an answer is written, and what becomes of an application that does not write one."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.errors import ModelNotFound
from tests.socket.apps import Held, Receive, Scope, Send, echo, reply
from tests.socket.conftest import Start
from tests.support.client import Caller

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def answering(*bodies: bytes, status: int = 200, headers: Any = ()) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for body in bodies[:-1]:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": bodies[-1]})

    return app


async def ask(caller: Caller, method: bytes = b"GET") -> Any:
    await caller.send(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n")
    return await caller.response(bodiless=method == b"HEAD")


async def test_the_applications_headers_and_the_date_are_sent_and_no_server(serve: Start) -> None:
    site = await serve(answering(b"hi", headers=[(b"X-One", b"1"), (b"x-two", b"a\tb"), (b"x-two", b"c")]))
    async with await site.caller() as caller:
        response = await ask(caller)
    date = response.headers["date"]
    assert response.fields == [
        ("x-one", "1"),
        ("x-two", "a\tb"),
        ("x-two", "c"),
        ("date", date),
        ("content-length", "2"),
    ]


async def test_a_body_of_unknown_length_is_chunked(serve: Start) -> None:
    big = b"x" * 5000
    site = await serve(answering(b"one", b"", big, b""))
    async with await site.caller() as caller:
        for _ in range(2):
            response = await ask(caller)
            assert response.headers["transfer-encoding"] == "chunked"
            assert response.body == b"one" + big


async def test_each_message_is_one_write_and_the_head_leaves_with_the_first(
    serve: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        connection = await site.connection()

        def write(data: bytes | memoryview) -> None:
            writes.append(bytes(data))
            connection._transport.write(data)

        monkeypatch.setattr(connection, "write", write)
        await answering(b"one", b"two", b"three")(scope, receive, send)

    site = await serve(app)
    async with await site.caller() as caller:
        assert (await ask(caller)).body == b"onetwothree"
    assert [data[-30:] for data in writes[1:]] == [b"3\r\ntwo\r\n", b"5\r\nthree\r\n0\r\n\r\n"]
    assert writes[0].startswith(b"HTTP/1.1 200 OK\r\n")
    assert writes[0].endswith(b"\r\n\r\n3\r\none\r\n")


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)])
async def test_an_answer_that_has_no_body_is_sent_without_one(serve: Start, method: bytes, status: int) -> None:
    site = await serve(answering(b"body", b"more", status=status))
    async with await site.caller() as caller:
        for _ in range(2):
            response = await ask(caller, method)
            assert response.status == status
            assert "transfer-encoding" not in response.headers


async def test_head_tells_the_length_of_what_is_not_sent(serve: Start) -> None:
    site = await serve(answering(b"body", headers=[(b"content-length", b"4")]))
    async with await site.caller() as caller:
        for _ in range(2):
            assert (await ask(caller, b"HEAD")).headers["content-length"] == "4"


async def test_an_unknown_length_ends_with_the_connection_for_http_1_0(serve: Start) -> None:
    site = await serve(answering(b"one", b"two"))
    async with await site.caller() as caller:
        await caller.send(b"GET / HTTP/1.0\r\n\r\n")
        assert (await caller.response()).body == b"onetwo"


async def test_the_application_may_close_and_does_not_frame(serve: Start) -> None:
    headers = [(b"Connection", b"x-y, Close"), (b"transfer-encoding", b"chunked")]
    site = await serve(answering(b"one", b"two", headers=headers))
    async with await site.caller() as caller:
        response = await ask(caller)
        assert response.body == b"onetwo"
        assert [field for field in response.fields if field[0] == "connection"] == [("connection", "close")]
        assert await caller.closed()


@pytest.mark.parametrize("value", [b"a\r\nx-y: 1", b"a\nb", b"a\rb", b"a\0b", b"\x7f"])
@pytest.mark.parametrize("name", [b"x-a", b"content-length"])
async def test_a_header_value_that_would_split_the_answer_is_never_sent(
    serve: Start, name: bytes, value: bytes
) -> None:
    site = await serve(answering(b"", headers=[(name, value)]))
    async with await site.caller() as caller:
        response = await ask(caller)
        assert (response.status, response.error["code"]) == (500, "internal_error")
        assert "x-y" not in response.headers


@pytest.mark.parametrize("name", [b"", b"a b", b"a:", b"a\r\n"])
async def test_a_header_name_that_is_none_is_never_sent(serve: Start, name: bytes) -> None:
    site = await serve(answering(b"", headers=[(name, b"x")]))
    async with await site.caller() as caller:
        assert (await ask(caller)).status == 500


@pytest.mark.parametrize("bodies", [[b"12345"], [b"123", b"45"], [b"1"], [b"1", b"2"]])
async def test_a_body_that_is_not_as_long_as_said_does_not_pass_for_whole(serve: Start, bodies: list[bytes]) -> None:
    site = await serve(answering(*bodies, headers=[(b"content-length", b"4")]))
    async with await site.caller() as caller:
        await caller.send(GET)
        with pytest.raises((EOFError, ConnectionResetError, AssertionError)):
            assert (await caller.response()).status == 200


async def test_an_error_that_escapes_is_rendered(serve: Start) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ModelNotFound

    site = await serve(app)
    async with await site.caller() as caller:
        response = await ask(caller)
        assert (response.status, response.error["code"]) == (404, "model_not_found")
        assert await caller.closed()
    async with await site.caller() as caller:
        assert (await ask(caller, b"HEAD")).status == 404
        assert await caller.closed()


async def test_any_other_failure_is_a_500_whose_id_finds_the_log_line(serve: Start) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise LookupError("a secret")

    site = await serve(app)
    with capture_logs() as logs:
        async with await site.caller() as caller:
            response = await ask(caller)
    assert (response.status, response.error["code"]) == (500, "internal_error")
    (line,) = logs
    assert (line["event"], line["error"]) == ("app_failed", "LookupError")
    assert line["request_id"] == response.headers["x-request-id"]
    assert line["request_id"] in response.error["message"]
    assert "secret" not in str(line) + str(response)


async def test_an_application_that_says_nothing_is_a_500(serve: Start) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    site = await serve(app)
    async with await site.caller() as caller:
        assert (await ask(caller)).status == 500


@pytest.mark.parametrize("ends", [LookupError, asyncio.CancelledError, None])
async def test_an_answer_that_is_not_finished_is_cut_off_visibly(
    serve: Start, ends: type[BaseException] | None
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        if ends is not None:
            raise ends

    site = await serve(app)
    async with await site.caller() as caller:
        with pytest.raises((EOFError, ConnectionResetError)):
            await ask(caller)


async def test_an_application_that_is_cancelled_from_outside_is_a_500(serve: Start) -> None:
    app = Held()
    site = await serve(app)
    async with await site.caller() as caller:
        await caller.send(GET)
        await app.entered.wait()
        (task,) = site.state.tasks
        task.cancel()
        assert (await caller.response()).status == 500
    await site.quiet()


async def test_a_failure_after_the_answer_changes_nothing_for_the_caller(serve: Start) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await reply(send, b"done")
        raise LookupError

    site = await serve(app)
    with capture_logs() as logs:
        async with await site.caller() as caller:
            assert (await ask(caller)).body == b"done"
            assert (await ask(caller)).body == b"done"
            await site.stop()
    assert {line["event"] for line in logs} == {"app_failed_after_answer"}


@pytest.mark.parametrize(
    "messages",
    [
        [{"type": "http.response.body"}],
        [{"type": "http.response.start", "status": 200}] * 2,
        [{"type": "websocket.accept"}],
        [{"type": "http.response.start", "status": 99}],
    ],
)
async def test_messages_out_of_turn_are_refused(serve: Start, messages: list[dict[str, Any]]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    site = await serve(app)
    async with await site.caller() as caller:
        assert (await ask(caller)).status == 500


@pytest.mark.parametrize("bodies", [[b"done"], [b"do", b"ne"]], ids=["plain", "chunked"])
async def test_nothing_is_sent_after_the_end(serve: Start, bodies: list[bytes]) -> None:
    errors: list[Exception] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answering(*bodies)(scope, receive, send)
        try:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        except RuntimeError as error:
            errors.append(error)

    site = await serve(app)
    async with await site.caller() as caller:
        assert (await ask(caller)).body == b"done"
        assert (await ask(caller)).body == b"done"
    assert errors


async def test_connections_are_kept_and_counted(serve: Start) -> None:
    site = await serve(echo)
    async with await site.caller() as caller:
        for _ in range(20):
            await ask(caller)
        assert len(site.state.connections) == 1
    await site.quiet()
    assert site.state.total_requests == 20
