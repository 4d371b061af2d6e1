"""`gateway check --online`, and what a start without a file asks: every replica, with its key, and nothing else."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import yaml
from click.testing import CliRunner, Result

from gateway import online
from gateway.cli import main
from gateway.config import ConfigError, Settings
from gateway.online import LARGEST, Finding, checked, listing, told
from gateway.transport import ResolveError, TlsError

KEY = "sk-planted-upstream"
Answer = Callable[[httpx.Request], httpx.Response]


def lists(*names: object) -> bytes:
    return orjson.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})


def config(upstreams: dict[str, Any], models: dict[str, Any] | None = None) -> dict[str, Any]:
    first = next(iter(upstreams))
    return {
        "auth": {"required": False},
        "upstreams": {
            name: {"kind": "openai", "url": f"http://{name}/v1", "api_key": KEY} | members
            for name, members in upstreams.items()
        },
        "models": models or {"*": {"targets": [{"upstream": first}]}},
    }


def asked(answer: Answer, upstreams: dict[str, Any], models: dict[str, Any] | None = None) -> list[str]:
    """What is told, failures marked."""
    settings = Settings.model_validate(config(upstreams, models))
    findings = checked(settings, httpx.MockTransport(answer))
    lines = [f"{'!! ' if failed else ''}{line}" for failed, line in told(settings, findings)]
    assert "planted" not in "".join(lines)
    return lines


def answering(status: int, body: bytes = b"", **headers: str) -> Answer:
    return lambda _: httpx.Response(status, content=body, headers=headers)


def failing(failure: Exception) -> Answer:
    def answer(_: httpx.Request) -> httpx.Response:
        raise failure

    return answer


# --- what is asked ------------------------------------------------------------------------------------------------


def test_each_replica_is_asked_for_its_models_with_the_upstreams_key() -> None:
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((str(request.url), request.headers.get("authorization"), request.method))
        return httpx.Response(200, content=lists("m") if request.url.host == "a-0" else lists("m", "n"))

    lines = asked(answer, {"a": {"url": None, "urls": ["http://a-0/v1", "http://a-1:8000/v1"]}, "b": {"api_key": None}})
    assert sorted(seen, key=str) == [
        ("http://a-0/v1/models", f"Bearer {KEY}", "GET"),
        ("http://a-1:8000/v1/models", f"Bearer {KEY}", "GET"),
        ("http://b/v1/models", None, "GET"),
    ]
    assert lines == ["a at a-0: ok, 1 model", "a at a-1:8000: ok, 2 models", "b at b: ok, 2 models"]


def test_who_has_no_models_to_list_is_asked_how_it_is() -> None:
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((str(request.url), request.headers.get("api-key")))
        return httpx.Response(200, content=b"not looked at")

    lines = asked(answer, {"az": {"url": "https://r.openai.azure.com", "azure": {"api_version": "2024-10-21"}}})
    assert seen == [("https://r.openai.azure.com/openai/models?api-version=2024-10-21", KEY)]
    assert lines == ["az at r.openai.azure.com: ok"]


def test_who_says_that_it_is_not_well_is_told_as_that() -> None:
    lines = asked(answering(400), {"t": {"kind": "triton", "url": "http://t:8000", "api_key": None}})
    assert lines == ["!! t at t:8000: not well: answers 400"]


# --- what is told -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (answering(401, b"sk-planted"), "refused: 401, the key is not accepted"),
        (answering(403), "refused: 403, the key is not accepted"),
        (answering(404), "answers 404: is the URL right, with the whole path?"),
        (answering(302, location="https://planted"), "answers 302: is the URL right, with the whole path?"),
        (answering(500), "answers 500"),
        (answering(429), "answers 429"),
        (answering(200, b"<html>"), "answers, but not with a list of models"),
        (answering(200, b"[]"), "answers, but not with a list of models"),
        (answering(200, b'{"data": 7}'), "answers, but not with a list of models"),
        (answering(200, b'{"data": [{}]}'), "answers, but not with a list of models"),
        (answering(200, lists("m", 7)), "answers, but not with a list of models"),
        (answering(200, lists(["m"])), "answers, but not with a list of models"),
        (answering(200, lists("m" * 300)), "answers, but not with a list of models"),
        (answering(200, lists("m") + b" " * LARGEST), "answers, but not with a list of models"),
        (failing(ResolveError("the host name could not be resolved")), "unreachable: the host name has no address"),
        (failing(TlsError("TLS failed: certificate has expired")), "TLS failed: certificate has expired"),
        (failing(httpx.ConnectError("no connection: Connection refused")), "unreachable: Connection refused"),
        (failing(httpx.ConnectError("")), "unreachable: no connection"),
        (failing(httpx.ConnectTimeout("")), "unreachable: no answer in 5 s"),
        (failing(httpx.ReadTimeout("")), "unreachable: no answer in 5 s"),
        (failing(httpx.RemoteProtocolError("sk-planted")), "does not answer in HTTP: RemoteProtocolError"),
    ],
)
def test_what_is_wrong_is_told_in_plain_words(answer: Answer, problem: str) -> None:
    assert asked(answer, {"a": {}}) == [f"!! a at a: {problem}"]


def test_a_key_that_is_refused_is_explained_where_the_reason_is_mostly_another() -> None:
    (line,) = asked(answering(401), {"q": {"kind": "qwen"}})
    assert (
        line
        == "!! q at q: refused: 401, the key is not accepted (a key belongs to one region, which must be the URL's)"
    )


def test_a_key_that_was_never_given_is_told_as_that() -> None:
    assert asked(answering(401), {"a": {"api_key": None}}) == ["!! a at a: refused: 401, and it has no api_key"]


def test_models_that_are_not_listed_are_a_warning() -> None:
    models = {
        "one": {"targets": [{"upstream": "a"}, {"upstream": "b", "model": "b-one"}], "fallbacks": ["gpt-5", "two"]},
        "two": {"targets": [{"upstream": "a", "model": "a-two"}, {"upstream": "b", "model": "no", "weight": 0}]},
        "gpt-*": {"targets": [{"upstream": "b"}]},
        "*": {"targets": [{"upstream": "a"}]},
    }
    lines = asked(answering(200, lists("one", "b-one")), {"a": {}, "b": {}}, models)
    assert lines == [
        "a at a: ok, 2 models",
        "a at a: warning: does not list a-two",
        "b at b: ok, 2 models",
        "b at b: warning: does not list gpt-5",
    ]


def test_a_finding_that_lists_nothing_is_well() -> None:
    settings = Settings.model_validate(config({"a": {}}))
    assert list(told(settings, [Finding("a", "a-0")])) == [(False, "a at a-0: ok")]


# --- over real sockets --------------------------------------------------------------------------------------------


@contextmanager
def serving(body: bytes, status: int = 200) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/v1/models" else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def nobody() -> Iterator[str]:
    """A port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def run(*arguments: str, **environ: str) -> Result:
    names = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "DASHSCOPE_API_KEY", "VLLM_URL", "VLLM_API_KEY", "TRITON_URL")
    unset: dict[str, str | None] = dict.fromkeys((*names, "GATEWAY_KEY", "GATEWAY_CONFIG"))
    return CliRunner().invoke(main, arguments, env={**unset, **environ}, catch_exceptions=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_asks_all_and_fails_if_one_fails(here: Path) -> None:
    with serving(lists("m")) as well, serving(b"no", 401) as refusing, nobody() as gone:
        upstreams = {"a": {"url": f"{well}/v1"}, "b": {"url": f"{refusing}/v1"}, "c": {"url": f"{gone}/v1"}}
        Path("gateway.yaml").write_text(yaml.safe_dump(config(upstreams)), encoding="utf-8")
        result = run("check", "--online")
    a, b, c = (url.removeprefix("http://") for url in (well, refusing, gone))
    assert result.exit_code == 1
    assert result.stdout.splitlines() == ["gateway.yaml: ok (3 upstreams, 1 model, 0 keys)", f"a at {a}: ok, 1 model"]
    assert result.stderr.splitlines() == [
        f"b at {b}: refused: 401, the key is not accepted",
        f"c at {c}: unreachable: Connection refused",
    ]
    assert "planted" not in result.output


def test_the_command_succeeds_where_all_are_well_and_warns_of_what_is_not_there(here: Path) -> None:
    with serving(lists("m")) as well:
        made = config(
            {"a": {"url": f"{well}/v1"}}, {"m": {"targets": [{"upstream": "a"}]}, "n": {"targets": [{"upstream": "a"}]}}
        )
        Path("gateway.yaml").write_text(yaml.safe_dump(made), encoding="utf-8")
        result = run("check", "--online")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1].endswith(": warning: does not list n")


def test_without_the_option_nobody_is_asked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "checked", None)
    result = run("check", OPENAI_API_KEY="sk-planted", VLLM_URL="http://nowhere.invalid")
    assert (result.exit_code, result.stdout) == (0, "environment: ok (2 upstreams, 1 model, 0 keys)\n")


def test_who_takes_too_long_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "PATIENCE", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = Settings.model_validate(config({"a": {"url": f"http://127.0.0.1:{silent.getsockname()[1]}/v1"}}))
        (finding,) = checked(settings)
    assert finding.problem == "unreachable: no answer in 0.01 s"


def test_a_vllm_beside_openai_serves_what_it_lists(here: Path) -> None:
    with serving(lists("Qwen/Qwen3-32B", "adapter")) as vllm, nobody() as gone:
        result = run("explain", "--model", "adapter", OPENAI_API_KEY="sk-planted", VLLM_URL=f"{gone},{vllm}")
        other = run("explain", "--model", "gpt-4o", OPENAI_API_KEY="sk-planted", VLLM_URL=vllm)
    assert "vllm as adapter" in result.stdout
    assert "openai as gpt-4o" in other.stdout


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_vllm_beside_openai_that_tells_nothing_ends_the_start_in_one_line(here: Path, command: str) -> None:
    arguments = [command, *(["--online"] if command == "check" else [])]
    with serving(lists()) as empty, nobody() as gone:
        result = run(*arguments, OPENAI_API_KEY="sk-planted", VLLM_URL=f"{empty},{gone}")
    a, b = (url.removeprefix("http://") for url in (empty, gone))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"VLLM_URL: does not tell which models it has: {a} lists no models; {b} unreachable: Connection refused\n"
    )


def test_a_listing_is_all_that_any_replica_lists() -> None:
    with serving(lists("b", "a")) as one, serving(lists("c")) as two, serving(b"no", 500) as three:
        urls = [f"{url}/v1" for url in (one, two, three)]
        settings = Settings.model_validate(config({"v": {"kind": "vllm", "url": None, "urls": urls}}))
        assert listing(settings.upstreams["v"]) == ["a", "b", "c"]


def test_a_listing_of_nobody_is_a_config_error() -> None:
    with serving(b"no", 401) as refusing:
        settings = Settings.model_validate(config({"v": {"kind": "vllm", "url": f"{refusing}/v1"}}))
        with pytest.raises(ConfigError, match="refused: 401, the key is not accepted"):
            listing(settings.upstreams["v"])
