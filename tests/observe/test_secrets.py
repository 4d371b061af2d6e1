"""Two dozen secrets, planted wherever a call or its answer can hold one: none is in a log, a metric or an error of ours.

A real process with its real log, at its most talkative, and an upstream that does whatever can go wrong.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.client import Caller, Response
from tests.support.processes import GatewayProcess
from tests.support.secrets import SECRETS
from tests.support.stage import END, JSON, STREAM_HEAD, event, frame
from tests.support.upstream import Action, Peer, ScriptedUpstream, close, forever, read, reply, reset, send

CONFIG = """\
server: {{host: 127.0.0.1, port: 0, admin_port: 0, drain_seconds: 1}}
log: {{level: debug, format: {format}}}
auth: {{keys: [{{name: tests, key: "${{CALLERS_KEY}}"}}]}}
retry: {{attempts: 1}}
timeouts: {{idle: 0.2}}
upstreams:
  up: {{kind: openai, url: "{url}/v1", api_key: "${{UPSTREAM_KEY}}", organization: "${{ORGANIZATION}}"}}
models:
  m: {{targets: [{{upstream: up}}]}}
"""
ENVIRON = {
    "CALLERS_KEY": SECRETS["caller_key"],
    "UPSTREAM_KEY": SECRETS["upstream_key"],
    "ORGANIZATION": SECRETS["organization"],
}
QUOTED = "upstream_error"  # of a 400, whose words are for the caller
CHAT = {
    "model": "m",
    "messages": [
        {"role": "system", "content": SECRETS["system"]},
        {"role": "user", "content": SECRETS["prompt"]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": SECRETS["part"]},
                {"type": "image_url", "image_url": {"url": f"data:{SECRETS['image']}"}},
            ],
        },
    ],
    "tools": [{"type": "function", "function": {"name": "f", "description": SECRETS["tool"]}}],
    "user": SECRETS["user"],
    "metadata": {"note": SECRETS["metadata"]},
    "stop": [SECRETS["stop"]],
}
ERROR = {"error": dict.fromkeys(("message", "type", "param", "code"), SECRETS["upstream_error"])}
HEADERS = [JSON, f"set-cookie: {SECRETS['upstream_header']}", f"x-request-id: {SECRETS['upstream_header']}"]
MESSAGE = {"role": "assistant", "content": SECRETS["answer"]}
SERVED = {"id": "c", "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}]}
CALLED = {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": SECRETS["arguments"]}}]}


def piece(**delta: Any) -> bytes:
    return frame(event({"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}))


SAID = [STREAM_HEAD, piece(content=SECRETS["delta"]), piece(**CALLED)]
STATUSES = [
    "500 Oops",
    "429 Slow",
    "401 No",
    "403 No",
    "402 Pay",
    "400 Bad",
    "404 No",
    "503 Later",
    "302 There",
    "299 Odd",
]
PLAIN: dict[str, list[Action]] = {
    "served": [reply(orjson.dumps(SERVED), headers=HEADERS)],
    **{status: [reply(orjson.dumps(ERROR), status=status, headers=HEADERS)] for status in STATUSES},
    "junk": [reply(f"{{{SECRETS['answer']}".encode(), headers=HEADERS)],
    "error": [reply(orjson.dumps(ERROR), headers=HEADERS)],
    "page": [reply(f"<p>{SECRETS['answer']}".encode(), headers=["content-type: text/html"])],
    "no HTTP": [send(SECRETS["answer"].encode() + b"\r\n\r\n"), close()],
    "bad header": [send(f"HTTP/1.1 200 OK\r\n{SECRETS['upstream_header']}\x00\r\n\r\n".encode()), close()],
    "cut": [send(f"HTTP/1.1 200 OK\r\n{JSON}\r\ncontent-length: 999\r\n\r\n{SECRETS['answer']}".encode()), close()],
    "reset": [reset()],
}
STREAMS: dict[str, list[Action]] = {
    "served": [send(*SAID, frame(b"data: [DONE]\n\n"), END)],
    "error event": [send(*SAID, frame(event(ERROR)), END)],
    "error first": [send(STREAM_HEAD, frame(event(ERROR)), END)],
    "junk event": [send(*SAID, frame(f"data: {{{SECRETS['delta']}\n\n".encode()), END)],
    "junk first": [send(STREAM_HEAD, frame(f"data: {{{SECRETS['delta']}\n\n".encode()), END)],
    "cut": [send(*SAID), close()],
    "silent": [send(*SAID)],
}


def post(body: bytes, path: str = "/v1/chat/completions", key: str = SECRETS["caller_key"], **more: str) -> bytes:
    fields = {"host": "g", "authorization": f"Bearer {key}", "content-type": "application/json"}
    fields |= {"cookie": SECRETS["cookie"], "x-request-id": f"{SECRETS['request_id']} with spaces", **more}
    fields["content-length"] = str(len(body))
    lines = [f"POST {path}?key={SECRETS['query']} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def asked() -> list[tuple[bytes, bool]]:
    """All the requests, in the order of what the upstream does; and whether an upstream sees them."""
    chat = orjson.dumps(CHAT)
    seen = [post(chat)] * len(PLAIN) + [post(orjson.dumps(CHAT | {"stream": True}))] * len(STREAMS)
    seen.append(post(orjson.dumps({"model": "m", "input": SECRETS["embedding"]}), "/v1/embeddings"))
    seen.append(post(orjson.dumps({"model": "m", "prompt": SECRETS["completion"]}), "/v1/completions"))
    unseen = [
        post(chat, key=SECRETS["wrong_key"]),
        post(chat.replace(b'"m"', f'"{SECRETS["model"]}"'.encode())),
        post(f'{{"model": {SECRETS["broken_json"]}'.encode()),
        post(f'{{"model": ["{SECRETS["broken_json"]}"], "messages": 1}}'.encode()),
        post(chat, f"/{SECRETS['query']}"),
        post(chat, **{"content-type": SECRETS["cookie"]}),
        post(chat, **{"x-request-timeout-ms": SECRETS["cookie"]}),
        b"GET / HTTP/1.1\r\nhost: g\r\n" + SECRETS["cookie"].encode() + b"\x01: x\r\n\r\n",
    ]
    return [(one, True) for one in seen] + [(one, False) for one in unseen]


def script(*answers: list[Action]) -> list[Action]:
    """To each request, on whatever connection, the next of these."""
    left = list(answers)

    async def act(peer: Peer) -> None:
        for action in left.pop(0):
            await action(peer)

    return [forever(read(), act)]


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    served = PLAIN["served"]
    async with ScriptedUpstream(script(*PLAIN.values(), *STREAMS.values(), served, served)) as upstream:
        yield upstream


async def answers(gateway: GatewayProcess) -> list[tuple[Response, bytes]]:
    port = int(gateway.url.rpartition(":")[2])
    got: list[tuple[Response, bytes]] = []
    for request, _ in asked():
        async with await Caller.connect(port) as caller:
            await caller.send(request)
            got.append((await caller.response(), request))
    return got


def found(text: bytes | str) -> set[str]:
    data = text if isinstance(text, bytes) else text.encode()
    return {name for name, secret in SECRETS.items() if secret.encode() in data}


@pytest.mark.parametrize("format_", ["json", "console"])
async def test_no_log_metric_or_error_tells_what_was_planted(
    upstream: ScriptedUpstream, tmp_path: Path, format_: str
) -> None:
    assert len(SECRETS) >= 20
    config = tmp_path / "gateway.yaml"
    config.write_text(CONFIG.format(url=upstream.url, format=format_))
    with Gateway(config, ENVIRON, format_) as gateway:
        got = await answers(gateway)
        admin = int(gateway.admin_url.rpartition(":")[2])
        async with await Caller.connect(admin) as caller:
            await caller.send(b"GET /metrics HTTP/1.1\r\nhost: g\r\n\r\n")
            page = (await caller.response()).body
    written = "\n".join([*gateway.out, *gateway.err])

    # They were really there,
    sent = b"".join(one.raw + one.body for one in upstream.requests)
    received = b"".join(response.body for response, _ in got)
    planted = found(b"".join(request for request, _ in asked())) | found(sent) | found(received)
    assert planted | {"upstream_header"} == set(SECRETS)
    assert {"prompt", "part", "tool", "user", "upstream_key", "organization", "embedding", "completion"} <= found(sent)
    assert {"answer", "delta", "arguments"} <= found(received)
    assert len(upstream.requests) == sum(seen for _, seen in asked())
    # and there is something in which they are not.
    assert written.count(" 200 chat m " if format_ == "console" else '"event":"request"') > 1
    assert b"gateway_requests_total{" in page
    assert found(written) == set()
    assert found(page) == set()
    for response, _ in got:
        heads = found("\n".join(f"{name}: {value}" for name, value in response.fields))
        assert heads == set(), response
        if response.status != 200:
            allowed = {QUOTED} if response.status in (400, 404) else set()
            assert found(json.dumps(response.error)) <= allowed, response
        elif b'"error"' in response.body:
            assert found(response.body[response.body.index(b'"error"') :]) == set(), response


class Gateway(GatewayProcess):
    """One whose log may be for people."""

    def __init__(self, config: Path, environ: dict[str, str], format_: str) -> None:
        super().__init__(config, environ)
        self._format = format_

    def started(self) -> None:
        if self._format == "json":
            super().started()
            return
        said = self.out.wait(lambda line: " listening " in line)
        facts = dict(word.split("=") for word in said.split() if "=" in word)
        self.url = f"http://{facts['host']}:{facts['port']}"
        self.admin_url = f"http://{facts['admin_host']}:{facts['admin_port']}"
