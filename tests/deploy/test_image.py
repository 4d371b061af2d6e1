"""The image, as far as it can be judged without an engine to build it: what the Dockerfile says, and what its steps make."""

import fnmatch
import json
import re
import subprocess
import sys
import threading
import tomllib
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from gateway import __version__
from gateway.cli import main
from gateway.config import Server
from gateway.config.loading import FOUND

ROOT = Path(__file__).parent.parent.parent


class Step(NamedTuple):
    """One instruction of the Dockerfile. `stage`: the number of the FROM that it follows."""

    stage: int
    word: str
    rest: str

    @property
    def argv(self) -> list[str]:
        """The words of an instruction in exec form."""
        words: list[str] = json.loads(self.rest)
        return words


def _steps() -> list[Step]:
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    stage = -1
    steps = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            stage += word == "FROM"
            steps.append(Step(stage, word, rest))
    return steps


STEPS = _steps()
LAST = STEPS[-1].stage


def said(word: str, stage: int = LAST) -> list[str]:
    """What the instructions of one kind say, in one stage."""
    return [step.rest for step in STEPS if step.word == word and step.stage == stage]


def test_both_stages_stand_on_one_base_that_can_be_pinned() -> None:
    assert STEPS[0] == Step(-1, "ARG", "BASE=python:3.12-slim-bookworm")
    assert [step.rest for step in STEPS if step.word == "FROM"] == ["${BASE} AS build", "${BASE}"]


def test_nothing_needs_a_shell() -> None:
    for step in STEPS:
        if step.word in {"RUN", "ENTRYPOINT", "CMD"}:
            assert step.argv
    (check,) = said("HEALTHCHECK")
    assert json.loads(check.partition("CMD ")[2])
    assert not [step for step in STEPS if step.word == "SHELL"]


def test_nothing_is_fetched_but_what_a_lock_file_names() -> None:
    assert not [step for step in STEPS if step.word == "ADD"]
    installs = [step.argv for step in STEPS if step.word == "RUN" and "install" in step.argv]
    assert len(installs) == 3
    for argv in installs:
        assert "--require-hashes" in argv or {"--no-index", "--no-deps"} <= set(argv)
    (wheel,) = [step.argv for step in STEPS if step.word == "RUN" and "wheel" in step.argv]
    assert {"--no-deps", "--no-build-isolation"} <= set(wheel)


def _copied() -> list[str]:
    return [source for rest in said("COPY", 0) for source in rest.split()[:-1]]


def test_everything_that_is_copied_is_there() -> None:
    assert [source for source in _copied() if not (ROOT / source).exists()] == []
    assert said("COPY") == ["--from=build /opt/gateway /opt/gateway"]


def test_the_context_holds_what_is_copied_and_no_more() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert lines[0] == "*"
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == set(_copied())
    again_left_out = [line.removeprefix("**/") for line in lines[1:] if not line.startswith("!")]
    assert [name for name in ("__pycache__", "cli.pyc") if not _matches(name, again_left_out)] == []


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def test_it_runs_as_nobody_in_particular() -> None:
    (user,) = said("USER")
    assert user == "10001:10001"
    order = [step.word for step in STEPS if step.stage == LAST]
    assert "RUN" not in order
    assert order.index("COPY") < order.index("USER")  # so that what it runs is not its own to change


def test_it_serves_on_the_ports_that_are_the_defaults_and_looks_at_its_health_there() -> None:
    assert [int(port) for rest in said("EXPOSE") for port in rest.split()] == [Server().port, Server().admin_port]
    assert f"http://127.0.0.1:{Server().port}/healthz" in said("HEALTHCHECK")[0]


def test_the_command_is_one_that_the_program_has_and_docker_stops_it_by_a_drain() -> None:
    assert json.loads(said("ENTRYPOINT")[0]) == ["gateway"]
    (command,) = json.loads(said("CMD")[0])
    assert command in main.commands
    assert said("STOPSIGNAL") == ["SIGTERM"]


def test_a_config_can_be_mounted_where_the_readme_says() -> None:
    assert not said("WORKDIR")  # a file in the working directory would go before it
    assert Path("/etc/gateway/gateway.yaml") in FOUND
    assert "`/etc/gateway/gateway.yaml`" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_interpreter_looks_for_code_nowhere_but_in_its_environment() -> None:
    (environment,) = said("ENV")
    assert {"PYTHONSAFEPATH=1", "PYTHONDONTWRITEBYTECODE=1", "PATH=/opt/gateway/bin:$PATH"} == set(environment.split())


def test_the_labels_are_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (labels,) = said("LABEL")
    told = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', labels))
    assert told == {
        "title": project["name"],
        "description": project["description"],
        "licenses": project["license"],
    }


def test_what_builds_it_is_locked_as_everywhere_else() -> None:
    pins = [
        re.findall(r"^\S+==\S+", (ROOT / f"requirements/{name}.txt").read_text(), re.MULTILINE)
        for name in ("build", "dev")
    ]
    named = [{pin.partition("==")[0]: pin for pin in found} for found in pins]
    assert "hatchling" in named[0]
    assert [pin for name, pin in named[0].items() if named[1].get(name, pin) != pin] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the image's own step makes, from what it copies, with the build backend that is installed here."""
    folder = tmp_path_factory.mktemp("image")
    (step,) = [step.argv for step in STEPS if step.word == "RUN" and "wheel" in step.argv]
    for source in ("pyproject.toml", "README.md", "LICENSE", "gateway"):
        assert source in _copied()
        (folder / source).symlink_to(ROOT / source)
    assert step[0].endswith("/pip")
    quietly = ["--quiet", "--disable-pip-version-check", "--no-index"]
    subprocess.run([sys.executable, "-m", "pip", *step[1:], *quietly], cwd=folder, timeout=60, check=True)
    (made,) = (folder / "dist").glob("*.whl")
    return made


def test_the_wheel_holds_the_package_its_types_and_its_licence(wheel: Path) -> None:
    assert wheel.name == f"gateway-{__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "gateway").rglob("*.py")}
    assert modules <= names
    assert {"gateway/py.typed", f"gateway-{__version__}.dist-info/licenses/LICENSE"} <= names
    assert {name.partition("/")[0] for name in names} == {"gateway", f"gateway-{__version__}.dist-info"}
    assert not [name for name in names if name.endswith(".pyc")]


def test_the_wheel_installs_a_program_that_runs(wheel: Path, tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    where = ["--no-index", "--no-deps", "--find-links", str(wheel.parent), "--target", str(tmp_path), "gateway"]
    subprocess.run([*install, *where], timeout=60, check=True)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "bin" / "gateway"), "--version"],
        env={"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == f"gateway, version {__version__}\n"


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing."""


def test_the_health_check_asks_this_machine_whatever_proxy_is_set_and_fails_where_nobody_answers() -> None:
    argv = json.loads(said("HEALTHCHECK")[0].partition("CMD ")[2])
    assert argv[0] == "python"
    with HTTPServer(("127.0.0.1", 0), _Healthy) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        good = _checked(argv, server.server_port)
        server.shutdown()
        serving.join()
    assert good == 0
    assert _checked(argv, 1) == 1


def _checked(argv: list[str], port: int) -> int:
    code = argv[-1].replace(f":{Server().port}/", f":{port}/")
    proxy = {"http_proxy": "http://127.0.0.1:1"}
    return subprocess.run(
        [sys.executable, *argv[1:-1], code], env=proxy, stderr=subprocess.DEVNULL, timeout=30, check=False
    ).returncode
