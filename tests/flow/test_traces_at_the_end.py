"""What becomes of the last spans when the process leaves: a real one, with a receiver that works, is down, or hangs."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.processes import GatewayProcess
from tests.support.receiver import receiving
from tests.support.upstream import blackhole, unused_port

CONFIG = """\
server: {{host: 127.0.0.1, port: 0, admin_port: 0, drain_seconds: 1}}
auth: {{required: false}}
upstreams: {{up: {{kind: openai, url: "http://127.0.0.1:{nobody}/v1"}}}}
models: {{m: {{targets: [{{upstream: up}}]}}}}
retry: {{attempts: 1}}
tracing: {{endpoint: "{url}", protocol: {protocol}, headers: {{x-key: "${{RECEIVER_KEY}}"}}}}
"""


@contextlib.contextmanager
def gateway(url: str, protocol: str, tmp_path: Path) -> Iterator[GatewayProcess]:
    path = tmp_path / "gateway.yaml"
    path.write_text(CONFIG.format(nobody=unused_port(), url=url, protocol=protocol), encoding="utf-8")
    environ = {"RECEIVER_KEY": "rk-planted", "NO_PROXY": "127.0.0.1"}
    with GatewayProcess(path, environ) as process:
        yield process


def call(process: GatewayProcess) -> float:
    """One call, and how long it took."""
    began = time.monotonic()
    answer = httpx.post(f"{process.url}/v1/chat/completions", json={"model": "m", "messages": []}, trust_env=False)
    assert answer.status_code == 502
    return time.monotonic() - began


def events(process: GatewayProcess) -> list[str]:
    return [json.loads(line)["event"] for line in process.out]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_what_waits_is_sent_before_the_process_ends(protocol: str, tmp_path: Path) -> None:
    with receiving(protocol) as receiver:
        with gateway(receiver.url, protocol, tmp_path) as process:
            call(process)
        assert process.code == 0
        server, attempt = receiver.spans()
    assert (server.server, attempt.parent_id) == (True, server.span_id)
    assert receiver.headers[0]["x-key"] == "rk-planted"
    assert events(process)[-1] == "stopped"
    assert list(process.err) == []


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_receiver_that_is_down_is_told_of_once_with_the_reason_and_holds_nobody_up(
    protocol: str, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    with gateway(url, protocol, tmp_path) as process:
        for _ in range(3):
            assert call(process) < 5
    assert process.code == 0
    assert [name for name in events(process) if name == "request"] == ["request"] * 3
    lost = [json.loads(line) for line in process.out if "traces_lost" in line]
    assert len(lost) == 1
    assert url.partition("//")[2].partition(":")[0] in lost[0]["reason"]
    assert not any("rk-planted" in line for line in [*process.out, *process.err])
    assert list(process.err) == []


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_receiver_that_hangs_is_given_no_more_than_the_drain(protocol: str, tmp_path: Path) -> None:
    with blackhole() as url, gateway(url, protocol, tmp_path) as process:
        assert call(process) < 5
        began = time.monotonic()
        process.stop()
        took = time.monotonic() - began
    assert process.code == 0
    assert took < 1 + 3  # the drain, and the machine's own slowness
    assert events(process)[-1] == "stopped"
    assert list(process.err) == []
