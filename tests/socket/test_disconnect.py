"""A caller who leaves, in every phase: the application is told once, and nothing stays behind."""

import asyncio
from collections.abc import Callable

import pytest

from gateway.api.protocol import ClientDisconnected
from tests.socket.apps import Held, Receive, Scope, Send, echo, reply
from tests.socket.conftest import Start
from tests.support.client import Caller, rounds

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
WAYS = {"close": Caller.close, "half-close": Caller.half_close, "reset": Caller.reset}
PHASES = {
    "in the body": (POST + b"123", Held()),
    "before the answer": (POST + b"12345", Held()),
    "in the answer": (POST + b"12345", Held(begins=True)),
    "before the answer, with another request waiting": (GET + POST + b"12345", Held()),
}


@pytest.mark.parametrize("leave", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("phase", PHASES)
async def test_the_application_is_told_once_that_the_caller_has_left(
    serve: Start, phase: str, leave: Callable[[Caller], None]
) -> None:
    request, kind = PHASES[phase]
    app = Held(begins=kind.begins)
    site = await serve(app)
    caller = await site.caller()
    await caller.send(request)
    if phase == "in the body":
        await rounds(5)
    else:
        await app.entered.wait()
    leave(caller)
    await app.left.wait()
    app.go.set()
    await site.quiet()
    caller.close()
    assert app.departures == 1
    assert isinstance(app.after, OSError)
    if phase != "in the body":
        assert isinstance(app.after, ClientDisconnected)


@pytest.mark.parametrize("leave", WAYS.values(), ids=WAYS.keys())
async def test_leaving_after_the_answer_is_not_leaving(serve: Start, leave: Callable[[Caller], None]) -> None:
    app = Held()
    app.go.set()
    site = await serve(app)
    caller = await site.caller()
    await caller.send(POST + b"12345")
    await caller.response()
    leave(caller)
    await site.quiet()
    caller.close()
    assert (app.departures, app.after) == (0, None)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHo"])
async def test_leaving_before_a_request_is_nobody_s_business(serve: Start, sent: bytes) -> None:
    site = await serve(echo)
    caller = await site.caller()
    await caller.send(sent)
    caller.close()
    await site.quiet()
    assert site.refused == []


async def test_receive_returns_at_a_disconnect_and_after_the_answer(serve: Start) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((await receive())["type"])
        if scope["path"] == "/whole":
            await reply(send, b"")
        seen.append((await receive())["type"])
        seen.append((await receive())["type"])

    site = await serve(app)
    caller = await site.caller()
    await caller.send(b"GET /whole HTTP/1.1\r\nHost: a\r\n\r\n")
    await caller.response()
    await caller.send(GET)
    while len(seen) < 4:
        await asyncio.sleep(0)
    caller.close()
    await site.quiet()
    assert seen == ["http.request", "http.disconnect", "http.disconnect"] * 2


async def test_a_loop_of_sends_ends_at_a_disconnect(serve: Start) -> None:
    ended: list[type[BaseException]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
                await asyncio.sleep(0)
        except OSError as error:
            ended.append(type(error))

    site = await serve(app)
    caller = await site.caller()
    await caller.send(GET)
    await caller.read_until(b"x")
    caller.reset()
    await site.quiet()
    assert ended == [ClientDisconnected]


async def test_who_asks_too_late_is_told_at_once(serve: Start) -> None:
    told: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope["extensions"]["gateway.on_disconnect"](lambda: told.append("left"))

    site = await serve(app)
    caller = await site.caller()
    await caller.send(GET)
    caller.close()
    await site.quiet()
    assert told == ["left"]


async def test_a_task_that_cancels_itself_when_the_caller_leaves_leaves_nothing(serve: Start) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        scope["extensions"]["gateway.on_disconnect"](task.cancel)
        entered.set()
        await asyncio.Event().wait()

    entered = asyncio.Event()
    site = await serve(app)
    caller = await site.caller()
    await caller.send(GET)
    await entered.wait()
    caller.close()
    await site.quiet()
