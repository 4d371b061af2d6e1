"""How long a caller will wait, as it says so itself: for all of its answer, or for the first byte of it."""

import asyncio
from math import inf

import pytest

from gateway.api.caller import Caller
from gateway.call import Exchange, Principal
from gateway.errors import CallerError
from gateway.flow.answer import Answer
from tests.support.clock import virtual_time

anyio_backend = virtual_time

BODY = b'{"model": "m"}'


async def told(*fields: tuple[str, bytes]) -> Exchange:
    """The record of a call that came with these fields. Raises CallerError."""
    loop = asyncio.get_running_loop()
    exchange = Exchange("r-1", "chat", loop.time())

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(_: object) -> None:
        raise AssertionError("nothing is answered here")

    headers = [(b"content-type", b"application/json"), *((name.encode(), value) for name, value in fields)]
    caller = Caller(headers, receive, Answer(send, exchange, loop.time), exchange, Principal("anonymous"))
    assert await caller.json_body() == BODY
    return exchange


def seconds(moment: float) -> float:
    return moment - asyncio.get_running_loop().time()


async def test_a_caller_that_says_nothing_waits_for_ever() -> None:
    exchange = await told(("accept", b"*/*"))
    assert exchange.deadline == exchange.first_byte_by == inf


@pytest.mark.parametrize(
    ("value", "is_"), [(b"1500", 1.5), (b"1", 0.001), (b"0.5", 0.0005), (b"1e3", 1.0), (b"86400000", 86400.0)]
)
async def test_milliseconds_bound_the_whole_call_to_the_letter(value: bytes, is_: float) -> None:
    exchange = await told(("x-request-timeout-ms", value))
    assert seconds(exchange.deadline) == pytest.approx(is_)
    assert exchange.first_byte_by == inf


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"0", b"0.0", b"-1", b"nan", b"inf", b"-inf", b"Infinity", b"1e999", b"9" * 32, b"9" * 10_000),
        *(b"soon", b"5s", b"1,5", b"1 0", b"0x10", b"\xff", b"\xd9\xa3"),
    ],
)
async def test_milliseconds_that_are_none_are_refused_and_the_field_is_named(value: bytes) -> None:
    with pytest.raises(CallerError) as caught:
        await told(("x-request-timeout-ms", value))
    error = caught.value
    assert (error.status, error.type, error.code) == (400, "invalid_request_error", "invalid_timeout")
    assert error.param == "x-request-timeout-ms"
    assert "x-should-retry" not in error.headers


@pytest.mark.parametrize("name", ["x-stainless-read-timeout", "x-stainless-timeout"])
@pytest.mark.parametrize(
    ("value", "is_"), [(b"600", 599.75), (b"600.0", 599.75), (b"2.5", 2.25), (b"1", 0.9), (b"0.1", 0.09)]
)
async def test_an_sdks_seconds_bound_the_wait_for_the_first_byte_and_are_up_a_little_earlier(
    name: str, value: bytes, is_: float
) -> None:
    exchange = await told((name, value))
    assert seconds(exchange.first_byte_by) == pytest.approx(is_)
    assert exchange.deadline == inf


@pytest.mark.parametrize("name", ["x-stainless-read-timeout", "x-stainless-timeout"])
@pytest.mark.parametrize(
    "value", [b"", b"0", b"-5", b"nan", b"inf", b"None", b"NOT_GIVEN", b"[object Object]", b"\xff"]
)
async def test_an_sdks_seconds_that_are_none_are_nobodys_mistake(name: str, value: bytes) -> None:
    exchange = await told((name, value))
    assert exchange.first_byte_by == exchange.deadline == inf


async def test_of_an_sdks_two_timeouts_the_shorter_one_is_kept_to() -> None:
    for fields in (
        [("x-stainless-timeout", b"10"), ("x-stainless-read-timeout", b"3")],
        [("x-stainless-timeout", b"3"), ("x-stainless-read-timeout", b"10")],
        [("x-stainless-read-timeout", b"3"), ("x-stainless-timeout", b"junk")],
    ):
        assert seconds((await told(*fields)).first_byte_by) == pytest.approx(2.75)


async def test_a_callers_own_time_and_that_of_its_sdk_are_two_things() -> None:
    exchange = await told(("x-stainless-read-timeout", b"600"), ("x-request-timeout-ms", b"30000"))
    assert seconds(exchange.deadline) == pytest.approx(30)
    assert seconds(exchange.first_byte_by) == pytest.approx(599.75)
