"""What the README tells people to type works: commands, snippets, the config, links."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import httpx
import pytest
from click.testing import CliRunner

from gateway.cli import main
from gateway.config import load
from tests.support.processes import Process

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAM = Path(sys.executable).parent / "gateway"
API = "http://127.0.0.1:8080"
ANSWER = "This answer was streamed through the gateway"


def blocks(language: str) -> list[str]:
    """The fenced blocks in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def shell_lines() -> list[str]:
    """Everything that the README tells people to type, each command whole."""
    typed = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    prompted = [
        line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines() if line[:2] == "$ "
    ]
    return [re.sub(" +", " ", line) for line in (*typed, *prompted)]


def starting(command: str) -> list[str]:
    """The lines that run one program."""
    return [line for line in shell_lines() if line.split()[0] == command]


def exported() -> dict[str, str]:
    """The variables that the README sets."""
    return dict(line.removeprefix("export ").split("=", 1) for line in starting("export"))


class Gateway(Process):
    """A command of the gateway that serves; `url` is where."""

    def __init__(self, *arguments: str, environ: Mapping[str, str] | None = None) -> None:
        super().__init__([str(PROGRAM), *arguments, "--port", "0", "--admin-port", "0"], environ)
        self.url = ""

    def started(self) -> None:
        """Learn where it listens."""
        said = json.loads(self.out.wait(lambda line: '"event":"listening"' in line))
        self.url = f"http://{said['host']}:{said['port']}".replace("0.0.0.0", "127.0.0.1")

    def typed(self, line: str, **environ: str) -> str:
        """What a line of the README prints, run against this gateway."""
        assert API in line
        return subprocess.run(
            ["sh", "-c", line.replace(API, self.url)],
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def demo() -> Iterator[Gateway]:
    with Gateway("demo") as process:
        yield process


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")


def test_every_command_is_one_that_is_tried_here() -> None:
    assert {line.split()[0] for line in shell_lines()} == {"make", "curl", "pip", "export", "gateway", "docker"}
    assert set(re.findall(r"^```(\w+)$", README, re.MULTILINE)) == {
        "sh",
        "console",
        "python",
        "yaml",
        "text",
    }


@pytest.mark.parametrize("line", starting("make"))
def test_every_make_target_exists(line: str) -> None:
    (target,) = line.split()[1:]
    assert re.search(rf"^{target}:.*## ", MAKEFILE, re.MULTILINE)


def test_make_run_serves_the_demo_where_the_readme_says() -> None:
    recipe = re.search(r"^run:.*\n\t(.*)", MAKEFILE, re.MULTILINE)
    assert recipe is not None
    assert recipe[1] == "$(BIN)/gateway demo --port $(PORT)"
    assert re.search(r"^PORT +\?= 8080$", MAKEFILE, re.MULTILINE)


@needs_curl
def test_the_first_curl_line_prints_the_answer_as_a_stream(demo: Gateway) -> None:
    said = demo.typed(starting("curl")[0])
    events = [line.removeprefix("data: ") for line in said.splitlines() if line]
    assert events.pop() == "[DONE]"
    words = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events]
    assert "".join(words).startswith(ANSWER)
    assert len(words) > 10


def test_the_python_snippet_prints_the_answer(demo: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = blocks("python")
    assert API in snippet
    namespace: dict[str, object] = {}
    exec(snippet.replace(API, demo.url), namespace)
    namespace["client"].close()  # type: ignore[attr-defined]
    assert capsys.readouterr().out.startswith(ANSWER)


@needs_curl
def test_the_environment_alone_is_enough(demo: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no config file is
    assert starting("gateway")[0] == "gateway serve"
    said = exported()
    with Gateway("serve", environ={**said, "OPENAI_BASE_URL": f"{demo.url}/v1"}) as served:
        listed = served.typed(starting("curl")[1], GATEWAY_KEY=said["GATEWAY_KEY"])
        refused = served.typed(starting("curl")[1], GATEWAY_KEY="somebody-elses")
    assert [model["id"] for model in json.loads(listed)["data"]] == ["demo"]
    assert json.loads(refused)["error"]["code"] == "invalid_api_key"
    assert [line for line in served.err if "every model" in line]


def test_without_a_callers_key_it_listens_on_this_machine_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Gateway("serve", environ={"OPENAI_API_KEY": exported()["OPENAI_API_KEY"]}) as served:
        assert json.loads(next(iter(served.out)))["host"] == "127.0.0.1"


def test_the_config_loads_and_check_prints_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (config,) = blocks("yaml")
    Path("gateway.yaml").write_text(config, encoding="utf-8")
    assert load(Path("gateway.yaml"), exported()).models
    (told,) = blocks("console")
    command, shown = re.findall(r"^\$ gateway (check .*)\n(.*)\n", told, re.MULTILINE)[0]
    result = CliRunner().invoke(main, command.split(), env=exported())
    assert (result.exit_code, result.stdout.strip()) == (0, shown)


@pytest.mark.parametrize("line", starting("gateway"))
def test_every_command_line_is_one_that_the_program_takes(line: str) -> None:
    name, *arguments = line.split()[1:]
    command = main.commands[name]
    with click.Context(main) as context:
        assert command.make_context(name, arguments, parent=context).info_name == name


def test_the_table_of_commands_is_the_programs() -> None:
    table = set(re.findall(r"^\| `gateway ([a-z ]+)` \|", README, re.MULTILINE))
    assert table == {"serve", "check", "explain", "demo", "config schema"} == set(_commands(main))


def _commands(group: click.Group, prefix: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}"


def test_the_container_is_given_what_it_needs() -> None:
    build, run = starting("docker")
    assert build.split()[-1] == "."
    assert (ROOT / "Dockerfile").is_file()
    assert run.split()[-1] == build.split()[build.split().index("--tag") + 1]
    published = re.findall(r"--publish \d+:(\d+)", run)
    assert published == ["8080"]
    # without the key it would listen on the container's own 127.0.0.1, where nobody is
    assert set(re.findall(r"--env (\w+)", run)) == {"OPENAI_API_KEY", "GATEWAY_KEY"}


def test_pip_installs_this_folder() -> None:
    assert starting("pip") == ["pip install ."]
    assert (ROOT / "pyproject.toml").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_the_table_of_dependencies_is_what_is_installed() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = README.split("## Dependencies", 1)[1].split("\n## ", 1)[0]
    for declaration, row in (
        ("dependencies", r" \|"),
        ("triton", r", in the extra `\[triton\]` \|"),
        ("otel", r", in the extra `\[otel\]` \|"),
    ):
        declared = re.search(rf"^{declaration} = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)
        assert declared is not None
        rows = set(re.findall(rf"^\| ([a-z0-9-]+){row}", table, re.MULTILINE))
        assert rows == set(re.findall(r'^ +"([a-z0-9-]+)', declared[1], re.MULTILINE))


def test_every_tool_for_development_is_told() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = re.search(r"^dev = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    assert declared is not None
    told = README.split("For development:", 1)[1].split("\n## ", 1)[0]
    assert [name for name in re.findall(r'^ +"([a-z0-9-]+)', declared[1], re.MULTILINE) if name not in told] == []


def test_the_endpoints_are_what_is_served(demo: Gateway) -> None:
    table = README.split("## Endpoints", 1)[1].split("\n## ", 1)[0]
    paths = re.findall(r"`(?:GET|POST) (/[^`]*)`", table)
    assert len(paths) == 8
    admin = next(json.loads(line)["admin_port"] for line in demo.out if "listening" in line)
    for path in paths:
        base = f"http://127.0.0.1:{admin}" if path == "/metrics" else demo.url
        answer = httpx.get(f"{base}{path.replace('{id}', 'demo')}", trust_env=False)
        assert answer.status_code == (405 if "POST " + path in table else 200)
