"""`requests` and nothing else: what a script without any SDK sees, down to the bytes of a stream."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.sdk.stage import CALLERS_KEY, DONE, SENTENCE, Stage, Standing, delta, saying, stream, told, whole_stream
from tests.support.upstream import close

pytestmark = pytest.mark.clients


@pytest.fixture
def session() -> Iterator[Any]:
    with requests.Session() as session:
        session.headers["authorization"] = f"Bearer {CALLERS_KEY}"
        yield session


def chat_url(stage: Stage) -> str:
    return f"{stage.gateway.url}/v1/chat/completions"


def test_a_plain_reply_is_json_with_a_length(session: Any, stage: Stage) -> None:
    response = session.post(chat_url(stage), json={"model": "tiny", "messages": told(), **saying()}, timeout=10)
    assert response.json()["choices"][0]["message"]["content"] == SENTENCE
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["content-length"]) == len(response.content)


def test_the_lines_of_a_stream_are_data_or_empty_and_the_last_is_done(session: Any, stage: Stage) -> None:
    body = {"model": "tiny", "messages": told(), "stream": True, **saying()}
    with session.post(chat_url(stage), json=body, stream=True, timeout=10) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        lines = [line for line in response.iter_lines(chunk_size=1) if line]
    assert all(line.startswith(b"data: ") for line in lines)
    assert lines[-1] == b"data: [DONE]"
    chunks = [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]
    assert not any("usage" in chunk for chunk in chunks)
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == SENTENCE


def test_a_connection_serves_one_request_after_another(session: Any, stage: Stage) -> None:
    body = {"model": "tiny", "messages": told(), "stream": True, **saying()}
    ports = set()
    for _ in range(3):
        with session.post(chat_url(stage), json=body, stream=True, timeout=10) as response:
            ports.add(response.raw.connection.sock.getsockname())
            assert response.content.endswith(DONE)
    assert len(ports) == 1


async def test_a_stream_is_passed_on_byte_for_byte(session: Any, stage: Stage, standing: Standing) -> None:
    events = [b": a comment\n\n", delta("Grüße"), delta(" 🎉"), b"data:" + delta(finish="stop")[6:]]
    body = {"model": "scripted", "messages": told(), "stream": True}
    async with standing(whole_stream(*events)):
        response = await asyncio.to_thread(session.post, chat_url(stage), json=body, timeout=10)
    assert response.content == b"".join([*events, DONE])


async def test_a_stream_that_is_cut_ends_with_an_error_event_and_no_done(
    session: Any, stage: Stage, standing: Standing
) -> None:
    body = {"model": "scripted", "messages": told(), "stream": True}
    async with standing([*stream(delta("Hel"), delta("lo")), close()]):
        response = await asyncio.to_thread(session.post, chat_url(stage), json=body, timeout=10)
    *passed, last, end = response.content.split(b"\n\n")
    assert [part + b"\n\n" for part in passed] == [delta("Hel"), delta("lo")]
    assert set(json.loads(last.removeprefix(b"data: "))["error"]) == {"message", "type", "param", "code"}
    assert end == b""


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/nowhere", 404),
        ("GET", "/", 404),
        ("GET", "/v1/models/x", 404),
    ],
)
def test_errors_have_one_shape_everywhere(session: Any, stage: Stage, method: str, path: str, status: int) -> None:
    response = session.request(method, stage.gateway.url + path, timeout=10)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_comes_in_chunks_is_read(session: Any, stage: Stage) -> None:
    body = json.dumps({"model": "tiny", "messages": told(), **saying()}).encode()
    pieces = (body[at : at + 7] for at in range(0, len(body), 7))
    headers = {"content-type": "application/json"}
    response = session.post(chat_url(stage), data=pieces, headers=headers, timeout=10)
    assert response.json()["choices"][0]["message"]["content"] == SENTENCE
