"""Takes the recordings of vLLM anew: `VLLM=.venv-vllm .venv/bin/python -m tests.vllm.record`. Two servers, about three minutes.

What comes is kept whole, head and body, as `curl -i` shows it. docs/conformance.md says which version said it, and when.
"""

import contextlib
import http.client
import json
import tempfile
import threading
from pathlib import Path
from typing import Any

from tests.dialects.recordings import FOLDER
from tests.engines.triton import free_ports
from tests.vllm.conftest import ADAPTER, ROOM, TALKS
from tests.vllm.server import KEY, NAME, Vllm, make_model
from tests.vllm.test_calls import GUESSING, LOOK

CHAT: dict[str, Any] = {
    "model": NAME,
    "messages": [{"role": "user", "content": "Hello!"}],
    "max_tokens": 4,
    "temperature": 0,
}
STREAM: dict[str, Any] = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
ENDLESS: dict[str, Any] = {**STREAM, "max_tokens": 30_000, "ignore_eos": True}
CALLING: dict[str, Any] = {"tools": [LOOK], "tool_choice": {"type": "function", "function": {"name": "look"}}}
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WANTED: dict[str, dict[str, Any]] = {
    "plain": CHAT,
    "stream": STREAM,
    "stream_counted": {**STREAM, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    "adapter": {**CHAT, "model": ADAPTER},
    "tool": {**CHAT, **GUESSING, **CALLING},
    "tool_stream": {**STREAM, **GUESSING, **CALLING},
    "schema_stream": {
        **STREAM,
        "max_tokens": 100,
        "response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}},
    },
    "model": {**CHAT, "model": "nope"},
    "too_long": {**CHAT, "messages": [{"role": "user", "content": "fox " * 40_000}]},
    "bad_parameter": {**CHAT, "temperature": -3},
}


def ask(server: Vllm, body: object, path: str = "/v1/chat/completions", key: str = KEY) -> http.client.HTTPResponse:
    """Begin a call."""
    connection = http.client.HTTPConnection(server.root.removeprefix("http://"), timeout=60)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    connection.request("POST", path, json.dumps(body), headers)
    return connection.getresponse()


def written(answer: http.client.HTTPResponse) -> bytes:
    """An answer, to its end."""
    head = [f"HTTP/1.1 {answer.status} {answer.reason}", *(f"{name}: {value}" for name, value in answer.getheaders())]
    return "\r\n".join([*head, "", ""]).encode("ascii") + answer.read()


def keep(name: str, recording: bytes) -> None:
    """Put a recording in its place."""
    (FOLDER / "real" / "vllm" / f"{name}.http").write_bytes(recording)


def in_stream(server: Vllm) -> bytes | None:
    """What a stream gets that came at the same moment as others, if the race for the last room is lost within it."""
    gate, answers = threading.Barrier(16), list[bytes]()

    def call() -> None:
        gate.wait()
        answers.append(written(ask(server, {**STREAM, "max_tokens": 50})))

    callers = [threading.Thread(target=call) for _ in range(gate.parties)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    print("of 16 at once:", sorted({answer.split(b"\r\n", 1)[0].decode() for answer in answers}))
    return next((one for one in answers if one.startswith(b"HTTP/1.1 200") and b'"error"' in one), None)


def record(server: Vllm, narrow: Vllm) -> None:
    """All of them, from a server with an adapter and from one with little room, whose end this is."""
    for name, body in WANTED.items():
        keep(name, written(ask(server, body)))
    keep(
        "completions_stream",
        written(ask(server, {**STREAM, "prompt": "The quick", "messages": None}, "/v1/completions")),
    )
    keep("no_embeddings", written(ask(server, {"model": NAME, "input": "x"}, "/v1/embeddings")))
    keep("unauthorized", written(ask(server, CHAT, key="sk-nobodys")))
    lost = next((lost for _ in range(50) if (lost := in_stream(narrow)) is not None), None)
    if lost is not None:
        keep("queue_full_in_stream", lost)
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(ask(narrow, ENDLESS)) for _ in range(ROOM)]
        keep("queue_full", written(ask(narrow, CHAT)))
        narrow.kill_engine()
        keep("died", written(crowd[0]))
    keep("engine_dead", written(ask(narrow, CHAT)))


def main() -> None:
    """Start both, and ask."""
    with tempfile.TemporaryDirectory() as folder:
        model, adapter = make_model(Path(folder))
        ports = free_ports(2)
        lora = ("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"{ADAPTER}={adapter}")
        with (
            Vllm(model, ports[0], *TALKS, *lora, "--enable-request-id-headers") as server,
            Vllm(model, ports[1], *TALKS, "--max-num-queued-reqs", str(ROOM)) as narrow,
        ):
            server.ready()
            narrow.ready()
            record(server, narrow)


if __name__ == "__main__":
    main()
