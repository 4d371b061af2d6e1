"""What the operator sees of a request that was refused before it was read: nothing is refused without a trace."""

import json
from pathlib import Path

import pytest

from tests.support.client import Caller
from tests.support.processes import GatewayProcess
from tests.support.stage import KEY, staged

HEAD = "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nx-request-id: my-id\r\ncontent-length: 11000000\r\n"
CONFIG = """\
server: {host: 127.0.0.1, port: 0, admin_port: 0}
auth: {required: false}
upstreams: {up: {kind: openai, url: "http://127.0.0.1:9"}}
models: {m: {targets: [{upstream: up}]}}
"""


@pytest.mark.parametrize(
    ("key", "status", "code"), [(KEY, 413, "request_too_large"), ("sk-somebody-elses", 401, "invalid_api_key")]
)
async def test_an_announced_body_that_is_too_much_is_a_call_like_any_other(key: str, status: int, code: str) -> None:
    async with staged([]) as stage, await stage.caller() as caller:
        await caller.send(f"{HEAD}content-type: application/json\r\nauthorization: Bearer {key}\r\n\r\n".encode())
        response = await caller.response()
        assert (response.status, response.error["code"]) == (status, code)
        assert response.headers["x-request-id"] == "my-id"
        assert await caller.closed()
        line = await stage.records.request()
        assert (line["request_id"], line["status"], line["end_reason"]) == ("my-id", status, code)
        assert stage.sample("gateway_requests_total", status=str(status)) == 1
        assert stage.sample("gateway_refused_heads_total") == 0


async def test_a_head_that_is_refused_leaves_a_line_with_the_id_that_the_caller_was_given(tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    with GatewayProcess(config) as process:
        port = int(process.url.rpartition(":")[2])
        async with await Caller.connect(port) as caller:
            await caller.send(b"GET / HTTP/1.1\r\n\r\n")
            response = await caller.response()
        line = json.loads(process.out.wait(lambda line: '"event":"refused"' in line))
    del line["timestamp"]
    assert line == {
        "level": "warning",
        "event": "refused",
        "status": 400,
        "code": "invalid_host",
        "request_id": response.headers["x-request-id"],
    }
