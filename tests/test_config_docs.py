"""The documentation of the config is complete, and every config in it and in deploy/ loads."""

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest

from gateway.cli import main
from gateway.config import ConfigError, environment, load, schema

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
EXAMPLES = [*sorted((ROOT / "deploy" / "config").glob("*.yaml"))]
BLOCKS = re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)


class AnyVariable(dict[str, str]):
    """An environment in which every variable is set, each to something else."""

    def __missing__(self, name: str) -> str:
        return f"value-of-{name}"

    def get(self, name: str, default: Any = None) -> Any:
        return default if name in {"PORT", "OPENAI_BASE_URL", "VLLM_API_KEY"} else self[name]


def settings(section: dict[str, Any], path: str, definitions: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Path, default and description of each setting below a section of the schema."""
    found = []
    for name, said in section["properties"].items():
        below = _section(said, definitions)
        if below is None or "anyOf" in said.get("items", {}):  # or it may be text as well
            found.append((f"{path}{name}", _default(name, said, section), said["description"]))
        if below is not None:
            found += settings(below[0], f"{path}{name}{below[1]}.", definitions)
    return found


def _section(said: dict[str, Any], definitions: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
    items = said.get("items", {})
    items = next((held for held in items.get("anyOf", []) if "$ref" in held), items)
    said = next((held for held in said.get("anyOf", []) if "$ref" in held), said)
    for held, entry in ((said, ""), (items, "[]"), (said.get("additionalProperties", {}), ".NAME")):
        if "$ref" in held:
            return definitions[held["$ref"].rpartition("/")[2]], entry
    return None


def _default(name: str, said: dict[str, Any], section: dict[str, Any]) -> str:
    if name in section.get("required", []):
        return "required"
    if name in {"url", "urls"}:
        return "one of both"
    default = said.get("default")
    if default is None:
        return "none"
    return f"`{json.dumps(int(default) if isinstance(default, float) and default.is_integer() else default)}`".replace(
        '`"', "`"
    ).replace('"`', "`")


MERGED = tuple(f"upstreams.NAME.{section}." for section in ("timeouts", "retry", "breaker"))
ROWS = [
    f"| `{path}` | {default} | {description} |"
    for path, default, description in settings(schema(), "", schema()["$defs"])
    if not path.startswith(MERGED)  # one row for each says that they are as the top-level ones
]


@pytest.mark.parametrize("row", ROWS)
def test_every_setting_has_its_row_with_default_and_meaning(row: str) -> None:
    assert row in DOCS


def test_no_row_is_left_of_a_setting_that_is_gone() -> None:
    documented = [line for line in DOCS.splitlines() if re.match(r"\| `[a-z]+\.[a-zA-Z_.\[\]]+` \| ", line)]
    assert sorted(documented) == sorted(ROWS)


@pytest.mark.parametrize(
    "name", ["GATEWAY_CONFIG", "OPENAI_API_KEY", *environment._STARTS, *environment._VARIABLES.values(), "PORT"]
)
def test_every_variable_is_told(name: str) -> None:
    assert f"`{name}`" in DOCS


def test_every_command_and_option_is_told() -> None:
    def told(command: click.Command, path: str) -> None:
        if isinstance(command, click.Group):
            for name, member in command.commands.items():
                told(member, f"{path} {name}")
            return
        assert f"`{path}`" in DOCS
        options = [flag for parameter in command.params for flag in parameter.opts if flag.startswith("--")]
        row = next(line for line in DOCS.splitlines() if line.startswith(f"| `{path}`"))
        assert [flag for flag in options if f"`{flag}" not in row] == []

    told(main, "gateway")


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block {number}" for number in range(len(BLOCKS))])
def test_every_config_in_the_documentation_loads(block: str, tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(block, encoding="utf-8")
    assert load(path, AnyVariable()).models


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_loads(path: Path) -> None:
    assert load(path, AnyVariable()).models


def test_the_mistakes_in_the_documentation_are_told_as_it_says(tmp_path: Path) -> None:
    shown = re.search(r"cat gateway.yaml\n(.*?)\$ gateway check\n(.*?)```", DOCS, re.DOTALL)
    assert shown is not None
    path = tmp_path / "gateway.yaml"
    path.write_text(shown[1], encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert str(caught.value).replace(f"{tmp_path}/", "") == shown[2].strip()
