"""The commands as a shell sees them: what they print, and how they end."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway import __version__
from gateway.cli import main
from gateway.config import Settings
from gateway.kinds import KINDS

GOOD = """\
auth: {keys: [{name: a, key: "${CALLERS_KEY}"}]}
upstreams:
  there: {kind: openai, url: "http://127.0.0.1:9", api_key: sk-planted-upstream}
models:
  one: {targets: [{upstream: there}]}
  two: {targets: [{upstream: there, model: one}]}
"""
UNSET = dict.fromkeys(
    [
        *("OPENAI_API_KEY", "OPENAI_BASE_URL", "DASHSCOPE_API_KEY", "DASHSCOPE_BASE_URL", "VLLM_URL", "VLLM_API_KEY"),
        *("TRITON_URL", "TRITON_MODEL", "TRITON_TEMPLATE", "GATEWAY_KEY", "GATEWAY_CONFIG", "PORT"),
    ]
)
PROCESS = Path(sys.executable).parent / "gateway"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(main, arguments, env={**UNSET, **environ}, catch_exceptions=False)


def run_process(*arguments: str, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    return subprocess.run(
        [PROCESS, *arguments],
        env={**kept, **(environ or {})},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_version_is_the_packages() -> None:
    assert run("--version").output == f"gateway, version {__version__}\n"


def test_check_counts_what_a_good_file_holds() -> None:
    Path("other.yaml").write_text(GOOD)
    result = run("check", "--config", "other.yaml", CALLERS_KEY="sk-planted-callers")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "other.yaml: ok (1 upstream, 2 models, 1 key)\n"


def test_check_finds_the_file_by_itself_or_by_the_environment() -> None:
    Path("gateway.yaml").write_text(GOOD)
    Path("other.yaml").write_text(GOOD.replace("one:", "uno:"))
    assert run("check", CALLERS_KEY="long-enough").stdout.startswith("gateway.yaml: ok")
    assert run("check", CALLERS_KEY="long-enough", GATEWAY_CONFIG="other.yaml").stdout.startswith("other.yaml: ok")


def test_check_tells_every_mistake_on_stderr_and_fails() -> None:
    Path("gateway.yaml").write_text(GOOD.replace("openai", "gemini") + "retries: {attempts: 3}\n")
    result = run("check", CALLERS_KEY="short")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        "gateway.yaml:1: auth.keys[0].key: must be at least 8 visible ASCII characters without spaces",
        f"gateway.yaml:3: upstreams.there.kind: not supported; supported here: {', '.join(KINDS)}",
        "gateway.yaml:7: retries: unknown key; known here: server, auth, upstreams, models, timeouts, retry, breaker, log, tracing",
    ]


def test_check_without_a_file_looks_at_the_environment() -> None:
    assert run("check", OPENAI_API_KEY="sk-planted").stdout == "environment: ok (1 upstream, 1 model, 0 keys)\n"
    result = run("check")
    assert result.exit_code == 1
    assert result.stderr == (
        "no config file and none of OPENAI_API_KEY, DASHSCOPE_API_KEY, VLLM_URL, TRITON_URL: "
        "name a file with --config or GATEWAY_CONFIG, or set one of them\n"
    )


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_named_file_that_is_not_there_is_one_line(command: str) -> None:
    result = run(command, "--config", "nowhere.yaml", OPENAI_API_KEY="sk-planted")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "nowhere.yaml: No such file or directory\n"


def test_no_command_prints_a_secret() -> None:
    Path("gateway.yaml").write_text(GOOD)
    bad = "log: {level: '${CALLERS_KEY}'}\nserver: {port: '${CALLERS_KEY}'}\n"
    Path("bad.yaml").write_text(GOOD + bad)
    for arguments in (
        ["check"],
        ["check", "--config", "bad.yaml"],
        ["serve", "--config", "bad.yaml"],
        ["config", "schema"],
    ):
        assert "planted" not in run(*arguments, CALLERS_KEY="sk-planted-callers").output


def test_config_schema_prints_json() -> None:
    made = json.loads(run("config", "schema").stdout)
    assert made["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(made["properties"]) == set(Settings.model_fields)


def test_serve_tells_mistakes_and_does_not_start() -> None:
    Path("gateway.yaml").write_text("models: [")
    result = run("serve")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "gateway.yaml:1: not valid YAML: expected the node content, but found '<stream end>'\n"


def test_serve_names_the_files_that_it_can_not_read_and_check_does_not_look() -> None:
    transport = "transport: {ca_file: nowhere.pem, client_cert: .}"
    Path("gateway.yaml").write_text(GOOD.replace("api_key:", f"{transport}, api_key:"))
    assert run("check", CALLERS_KEY="long-enough").exit_code == 0
    result = run("serve", CALLERS_KEY="long-enough")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "upstreams.there.transport.ca_file: cannot be read: No such file or directory",
        "upstreams.there.transport.client_cert: cannot be read: Is a directory",
    ]


def test_serve_from_the_environment_stays_on_this_machine_without_a_key() -> None:
    result = run("serve", "--host", "0.0.0.0", OPENAI_API_KEY="sk-planted")
    assert result.exit_code == 1
    assert (
        result.stderr == "--host: with auth off only this machine may call: set GATEWAY_KEY, or write a config file\n"
    )


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_a_port_that_is_taken_is_one_line_and_no_traceback(command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_process(
            command, "--port", port, "--admin-port", "0", environ={"OPENAI_API_KEY": "sk-planted-in-the-environment"}
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"cannot start: 127.0.0.1:{port}: Address already in use"
    assert "Traceback" not in done.stderr
    assert "planted" not in done.stdout + done.stderr


def test_the_demo_says_what_to_try() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_process("demo", environ={"PORT": str(port)})
    assert f"curl -N http://127.0.0.1:{port}/v1/chat/completions" in done.stderr


def test_the_demo_serves_on_this_machine_and_stops_when_told() -> None:
    command = [str(PROCESS), "demo", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            listening = json.loads(process.stdout.readline())
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (listening["event"], listening["host"], listening["admin_host"]) == ("listening", "127.0.0.1", "127.0.0.1")
    assert (process.returncode, said) == (0, "")


def test_the_demos_port_may_come_from_the_environment() -> None:
    result = run("demo", PORT="http")
    assert (result.exit_code, result.stderr) == (1, "PORT: must be a port, 0 to 65535\n")


def test_a_port_that_is_none_is_refused_by_the_command_line() -> None:
    result = run("serve", "--port", "65536")
    assert result.exit_code == 2
    assert "65535" in result.stderr


def test_check_does_not_wait_for_a_servers_imports() -> None:
    code = "import sys, gateway.cli; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert not {"uvicorn", "httpx", "fastapi", "structlog", "prometheus_client"} & set(done.stdout.split())
