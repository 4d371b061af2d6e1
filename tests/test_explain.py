"""What `gateway explain` says, and what it makes of whatever answers at a URL."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import yaml
from click.testing import CliRunner, Result
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from gateway.app import Gateway, create_gateway
from gateway.cli import main
from gateway.config import Settings
from gateway.explain import Readings, UnknownModel, UnreadableMetrics, explained, read, readings
from gateway.explain.plan import replica_name
from gateway.explain.readings import LARGEST, parse
from gateway.observe.upstreams import EngineReading, ReplicaReading, UpstreamReading, families

CONFIG: dict[str, Any] = {
    "auth": {"keys": [{"name": "a", "key": "sk-planted-callers"}]},
    "upstreams": {
        "vllm": {
            "kind": "openai",
            "urls": [{"url": "http://big:8000/v1", "weight": 2.5}, "http://small:8000/v1"],
            "api_key": "sk-planted-upstream",
            "concurrency": {"limit": 64, "queue": 0},
            "breaker": {"served": 0, "slow_start": 0},
            "retry": {"longest_wait": 0},
        },
        "pods": {
            "kind": "openai",
            "url": "http://vllm.models.svc/v1",
            "discovery": "dns",
            "balance": "round_robin",
            "retry": {"longest_wait": 0},
        },
        "openai": {"kind": "openai", "url": "https://api.openai.com/v1", "retry": {"longest_wait": 0}},
    },
    "models": {
        "chat": {
            "targets": [
                {"upstream": "vllm", "model": "Qwen/Qwen3-32B", "weight": 2},
                {"upstream": "pods", "weight": 1},
                {"upstream": "openai", "weight": 0},
            ],
            "fallbacks": ["gpt-4o-mini", "best"],
            "hedge": {"after": 0.5},
        },
        "gpt-*": {"targets": [{"upstream": "openai"}], "hedge": {"after": "p95"}},
        "best": {"targets": [{"upstream": "openai", "model": "o3"}], "fallbacks": ["chat"]},
    },
}
SETTINGS = Settings.model_validate(CONFIG)
ORDER = """
A call begins at a target of 1, drawn by its share. What fails before its first event goes on at another replica of that
upstream, then at the other targets, then at the fallbacks in order; at the same replica only if nothing else is left.
What is out, cooling or unhealthy comes last, and is used rather than nothing.

Rules:
   attempts     3 at most for a call that begins here, fallbacks and hedges included
"""
CHAT = f"""\
chat: configured by this name

1. targets, each with its share of the calls
   66.7 %  vllm as Qwen/Qwen3-32B (kind openai, balance least_load)
            big:8000    weight 2.5
            small:8000  weight 1
   33.3 %  pods as chat (kind openai, balance round_robin)
            every address of vllm.models.svc
    never  openai as chat (kind openai, balance least_load)

2. fallback gpt-4o-mini, taken by the pattern gpt-*
    100 %  openai as gpt-4o-mini (kind openai, balance least_load)
            api.openai.com  weight 1

3. fallback best, configured by this name
    100 %  openai as o3 (kind openai, balance least_load)
            api.openai.com  weight 1
{ORDER}\
   backoff      elsewhere none; at the same replica drawn from 0 to 0.25 s, doubled each time, up to 8 s; no Retry-After is waited for
   budget       0.2 further attempts for each call of the last 10 s, and 10 in reserve
   timeouts     connect 5 s, first token 60 s, reply 300 s; all attempts together 600 s
   breaker      vllm: out after 5 failures in a row; for 30 s, longer each time, up to 300 s
                pods, openai: out after 5 failures in a row, or under 80 % served of at least 10 calls in 10 s; for 30 s, longer each time, up to 300 s
   slow start   vllm: a replica that came back gets its share at once
                pods, openai: a replica that came back gets its share over 30 s
   concurrency  vllm: 64 calls at once at each replica; none wait for a place
                pods, openai: 1000 calls at once at each replica; 100 more wait, up to 1 s
   hedge        a second attempt starts elsewhere after 0.5 s without a first event"""


def gateway() -> Gateway:
    """One that runs this config, and is never called."""
    transport = httpx.MockTransport(lambda _: httpx.Response(200))
    return create_gateway(SETTINGS, logger=structlog.get_logger(), transport=transport)


def changed(**sections: Any) -> Settings:
    return Settings.model_validate({**CONFIG, **sections})


# --- from the config alone ----------------------------------------------------------------------------------------


def test_a_plan_has_every_place_in_its_order_and_each_rule_said_once() -> None:
    assert explained(SETTINGS, "chat") == CHAT


def test_a_model_that_a_pattern_takes_keeps_its_own_name_upstream() -> None:
    told = explained(SETTINGS, "gpt-5").splitlines()
    assert told[0] == "gpt-5: taken by the pattern gpt-*"
    assert told[3] == "    100 %  openai as gpt-5 (kind openai, balance least_load)"
    assert told[-1].endswith("elsewhere after the p95 of this model's latest calls without a first event")


def test_a_fallbacks_own_fallbacks_are_no_part_of_the_plan() -> None:
    assert "3. fallback" not in explained(SETTINGS, "best")
    assert "gpt-" not in explained(SETTINGS, "best")


def test_a_model_that_is_not_hedged_says_so() -> None:
    assert explained(SETTINGS, "best").splitlines()[-1] == "   hedge        none"


def test_an_upstreams_own_numbers_are_the_ones_that_are_told() -> None:
    told = explained(
        changed(
            timeouts={"connect": 1.5, "total": 30},
            retry={"attempts": 2, "base": 1, "cap": 2, "budget": 0.5, "reserve": 0},
            breaker={"failures": 1, "served": 0.95, "volume": 3, "window": 4, "ejection": 5, "max_ejection": 6},
            upstreams={"one": {"kind": "openai", "url": "http://a", "timeouts": {"reply": 7}, "retry": {"base": 1.5}}},
            models={"m": {"targets": [{"upstream": "one"}]}},
        ),
        "m",
    )
    assert told.partition("Rules:\n")[2].splitlines() == [
        "   attempts     2 at most for a call that begins here, fallbacks and hedges included",
        "   backoff      elsewhere none; at the same replica drawn from 0 to 1.5 s, doubled each time, up to 2 s; or a Retry-After up to 5 s",
        "   budget       0.5 further attempts for each call of the last 10 s, and 0 in reserve",
        "   timeouts     connect 1.5 s, first token 60 s, reply 7 s; all attempts together 30 s",
        "   breaker      out after 1 failure in a row, or under 95 % served of at least 3 calls in 4 s; for 5 s, longer each time, up to 6 s",
        "   slow start   a replica that came back gets its share over 30 s",
        "   concurrency  1000 calls at once at each replica; 100 more wait, up to 1 s",
        "   hedge        none",
    ]


@pytest.mark.parametrize(
    ("model", "like"),
    [
        ("chta", "nearest: chat"),
        ("CHAT", "nearest: chat"),
        ("Best", "nearest: best"),
        ("gpt", "nearest: gpt-*"),
        ("llama", "configured: best, chat, gpt-*"),
        ("", "configured: best, chat, gpt-*"),
    ],
)
def test_a_model_that_nothing_takes_is_told_with_the_names_like_it(model: str, like: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        explained(SETTINGS, model)
    assert str(caught.value) == f"--model: no model or pattern takes this name; {like}"


def test_no_key_is_in_a_plan() -> None:
    assert "planted" not in explained(SETTINGS, "chat")


@pytest.mark.parametrize("model", ["chat", "gpt-5", "best", "gpt-*"])
def test_the_plan_is_what_the_fleet_makes_of_the_same_config(model: str) -> None:
    route = gateway().fleet.resolve(model)
    assert route is not None
    made = [(target.upstream.name, target.model or model) for stage in route.stages for target in stage]
    lines = explained(SETTINGS, model).partition("\nA call")[0].splitlines()
    told = [line.split() for line in lines if "(kind" in line and "never" not in line]
    assert [(words[2], words[4]) for words in told] == made


@pytest.mark.parametrize(
    "url",
    [
        "http://vllm-0:8000/v1",
        "http://a:80",
        "https://a:443/v1",
        "https://a:80/v1",
        "http://A.Example/",
        "http://[::1]:8000",
        "http://[2001:DB8::1]/v1",
        "http://127.0.0.1:9",
        "http://a:080/v1",
        "http://a.b./v1",
        "http://a_b/v1",
        "grpc://triton:8001",
        "grpcs://[::1]:443",
    ],
)
def test_a_replica_has_the_name_that_it_has_in_the_metrics(url: str) -> None:
    assert replica_name(url) == httpx.URL(url).netloc.decode("ascii")


# --- with readings ------------------------------------------------------------------------------------------------

READ = (
    UpstreamReading(
        "vllm",
        [ReplicaReading("big:8000", "available", 1), ReplicaReading("small:8000", "ejected", 0)],
        queued=0,
        budget=57.0,
        panics=False,
        key_refused=False,
    ),
    UpstreamReading(
        "pods",
        [ReplicaReading("10.0.0.10:80", "probing", 0), ReplicaReading("10.0.0.9:80", "cooling", 12)],
        queued=0,
        budget=0.0,
        panics=True,
        key_refused=True,
    ),
    UpstreamReading(
        "openai",
        [ReplicaReading("api.openai.com", "unhealthy", 2)],
        queued=0,
        budget=1.0,
        panics=True,
        key_refused=False,
    ),
)


def page(*upstreams: UpstreamReading) -> str:
    class Told(Collector):
        def collect(self) -> Any:
            return families(upstreams)

    registry = CollectorRegistry()
    registry.register(Told())
    return generate_latest(registry).decode()


def test_readings_say_how_each_replica_and_each_upstream_stands() -> None:
    told = explained(SETTINGS, "chat", parse(page(*READ)))
    assert told.partition("\n\n2.")[0] == (
        "chat: configured by this name\n"
        "\n"
        "1. targets, each with its share of the calls\n"
        "   66.7 %  vllm as Qwen/Qwen3-32B (kind openai, balance least_load)\n"
        "            big:8000    weight 2.5  available, 1 call in flight\n"
        "            small:8000  weight 1  ejected, 0 calls in flight\n"
        "            retry budget: 57 attempts left\n"
        "   33.3 %  pods as chat (kind openai, balance round_robin)\n"
        "            10.0.0.10:80  probing, 0 calls in flight\n"
        "            10.0.0.9:80   cooling, 12 calls in flight\n"
        "            panic: over half of the replicas are out, and so all are used\n"
        "            key refused: calls come here only if nothing else is left\n"
        "            retry budget: 0 attempts left\n"
        "    never  openai as chat (kind openai, balance least_load)"
    )
    assert "            api.openai.com  weight 1  unhealthy, 2 calls in flight\n" in told
    assert "            retry budget: 1 attempt left\n" in told
    assert told.partition("\nA call")[2] == CHAT.partition("\nA call")[2]


def test_what_an_engine_says_of_itself_is_told_too() -> None:
    busy = ReplicaReading("big:8000", "available", 1, EngineReading(7.0, 2.0, 0.5))
    told = explained(SETTINGS, "chat", parse(page(READ[0]._replace(replicas=[busy, READ[0].replicas[1]]), READ[1])))
    assert "big:8000    weight 2.5  available, 1 call in flight; the engine has 7 running, 2 waiting\n" in told
    assert "small:8000  weight 1  ejected, 0 calls in flight\n" in told


def test_a_gateway_that_has_just_begun_has_every_replica_available() -> None:
    told = explained(SETTINGS, "chat", parse(generate_latest(gateway().metrics.registry).decode()))
    assert told.partition("\n\n2.")[0] == (
        "chat: configured by this name\n"
        "\n"
        "1. targets, each with its share of the calls\n"
        "   66.7 %  vllm as Qwen/Qwen3-32B (kind openai, balance least_load)\n"
        "            big:8000    weight 2.5  available, 0 calls in flight\n"
        "            small:8000  weight 1  available, 0 calls in flight\n"
        "            retry budget: 10 attempts left\n"
        "   33.3 %  pods as chat (kind openai, balance round_robin)\n"
        "            vllm.models.svc  available, 0 calls in flight\n"
        "            retry budget: 10 attempts left\n"
        "    never  openai as chat (kind openai, balance least_load)"
    )


def test_readings_of_another_config_say_what_is_not_there() -> None:
    told = explained(SETTINGS, "chat", parse(page(READ[0]._replace(replicas=READ[0].replicas[:1]))))
    assert told.splitlines()[:2] == [
        "chat: configured by this name",
        "The gateway at --url runs another config: it has no upstream pods, openai.",
    ]
    assert "small:8000  weight 1  not known there\n" in told
    assert "            no address is known there of vllm.models.svc\n" in told


def test_only_upstreams_on_the_way_are_missed() -> None:
    assert "another config" not in explained(SETTINGS, "gpt-5", parse(page(READ[2])))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!doctype html><title>Hello</title>",
        '{"error": {"message": "no"}}',
        "go_goroutines 7\n",
        "gateway_upstream_state{",
        "gateway_upstream_state{}",
        'gateway_upstream_state{upstream="a"} one',
        'gateway_upstream_state{upstream="a\\',
        "gateway_upstream_inflight 1",
        'gateway_upstream_inflight{upstream="\x1b[2J"} 1',
    ],
)
def test_what_is_no_page_of_a_gateways_metrics_is_refused(text: str) -> None:
    with pytest.raises(UnreadableMetrics, match="--url: answers, but not with a gateway's metrics"):
        parse(text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80) | st.text(alphabet='gateway_upstream_stat{}="\\,# 01.eN\n', max_size=80))
@example('{a="b"} 1')
@example('{upstream="b", state} 1')
def test_junk_is_readings_or_unreadable(junk: str) -> None:
    with suppress(UnreadableMetrics):
        assert isinstance(parse(f"gateway_upstream_state{junk}"), Readings)


def test_what_a_terminal_would_obey_is_not_taken_from_a_page() -> None:
    told = parse(page(READ[0], READ[1]._replace(replicas=[ReplicaReading("\x1b[2J", "available", 1)])))
    assert {place[1] for place in told.states} == {"big:8000", "small:8000"}


def test_the_example_in_the_documentation_is_what_is_said() -> None:
    docs = (Path(__file__).parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    config = changed(
        upstreams={
            "vllm": {"kind": "openai", "urls": ["http://vllm-0:8000/v1", "http://vllm-1:8000/v1"]},
            "openai": {"kind": "openai", "url": "https://api.openai.com/v1"},
        },
        models={
            "chat": {
                "targets": [
                    {"upstream": "vllm", "model": "Qwen/Qwen3-32B", "weight": 3},
                    {"upstream": "openai", "model": "gpt-4o"},
                ],
                "fallbacks": ["gpt-4o-mini"],
            },
            "gpt-*": {"targets": [{"upstream": "openai"}]},
        },
    )
    vllm, openai = READ[0], READ[2]
    replicas = [ReplicaReading("vllm-0:8000", "available", 12), ReplicaReading("vllm-1:8000", "ejected", 0)]
    hosted = [ReplicaReading("api.openai.com", "available", 1)]
    told = page(vllm._replace(replicas=replicas), openai._replace(replicas=hosted, budget=14.0, panics=False))
    assert (
        f"$ gateway explain --model chat --url http://127.0.0.1:8081\n{explained(config, 'chat', parse(told))}\n```"
        in docs
    )


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    return path


def run(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["explain", "--config", str(config), *arguments], catch_exceptions=False)


@contextmanager
def answering(body: bytes, status: int = 200, head: tuple[str, str] = ("content-type", "text/plain")) -> Iterator[str]:
    """The URL of a server that answers so at `/metrics`, and at nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/metrics" else 404)
            self.send_header(*head)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_command_prints_the_plan(config: Path) -> None:
    result = run(config, "--model", "chat")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{CHAT}\n", "")


def test_the_command_without_a_file_tells_what_the_environment_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"OPENAI_API_KEY": "sk-planted", "GATEWAY_CONFIG": None, "OPENAI_BASE_URL": None, "GATEWAY_KEY": None}
    result = CliRunner().invoke(main, ["explain", "--model", "gpt-4o"], env=environ, catch_exceptions=False)
    assert result.stdout.startswith("gpt-4o: taken by the pattern *\n")
    assert "planted" not in result.output


@pytest.mark.parametrize("suffix", ["", "/", "/metrics", "/metrics/"])
def test_the_command_adds_how_the_replicas_of_a_running_gateway_stand(config: Path, suffix: str) -> None:
    with answering(page(*READ).encode()) as url:
        result = run(config, "--model", "chat", "--url", url + suffix)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "small:8000  weight 1  ejected, 0 calls in flight\n" in result.stdout


def test_the_command_asks_no_proxy(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
    with answering(page(*READ).encode()) as url:
        assert run(config, "--model", "chat", "--url", url).exit_code == 0


def test_the_command_still_tells_the_plan_where_another_config_runs(config: Path) -> None:
    with answering(page(READ[1]).encode()) as url:
        result = run(config, "--model", "chat", "--url", url)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "runs another config: it has no upstream vllm, openai.\n" in result.stdout


def test_a_model_that_nothing_takes_ends_the_command_in_one_line(config: Path) -> None:
    result = run(config, "--model", "chatt")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "--model: no model or pattern takes this name; nearest: chat\n"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://127.0.0.1:1", "cannot be reached: Connection refused"),
        ("127.0.0.1:8081", "must be an http:// or https:// URL with a host"),
        ("file:///etc/passwd", "must be an http:// or https:// URL with a host"),
        ("http://", "must be an http:// or https:// URL with a host"),
        ("http://[::1", "must be an http:// or https:// URL with a host"),
        ("http://a:port", "must be an http:// or https:// URL with a host"),
        ("http://127.0.0.1/\x7f", "must be an http:// or https:// URL with a host"),
    ],
)
def test_a_gateway_that_is_not_there_ends_the_command_in_one_line(config: Path, url: str, told: str) -> None:
    result = run(config, "--model", "chat", "--url", url)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"--url: {told}\n")


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"<html>", 200, "answers, but not with a gateway's metrics"),
        (b"\xff\xfe", 200, "answers, but not with a gateway's metrics"),
        (b"no", 404, "answers 404, and not with metrics"),
        (b"elsewhere", 302, "answers 302, and not with metrics"),
    ],
)
def test_what_is_no_gateway_ends_the_command_in_one_line(config: Path, body: bytes, status: int, told: str) -> None:
    with answering(body, status, ("location", "http://127.0.0.1:1/")) as url:
        result = run(config, "--model", "chat", "--url", url)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"--url: {told}\n")


def test_no_more_is_read_than_metrics_can_be() -> None:
    with answering(b"#" * (LARGEST + 2)) as url, pytest.raises(UnreadableMetrics, match="more than 16777216 bytes"):
        read(url)


def test_a_gateway_that_does_not_answer_is_waited_for_so_long_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "SECONDS", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UnreadableMetrics, match="--url: cannot be reached: no answer in time"):
            read(url)


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.2\r\n", b""])
def test_what_speaks_no_http_is_told_so(said: bytes) -> None:
    class Handler(BaseHTTPRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(said)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    with pytest.raises(UnreadableMetrics, match="--url: cannot be reached: no HTTP"):
        read(f"http://127.0.0.1:{server.server_port}")
    thread.join()
    server.server_close()
