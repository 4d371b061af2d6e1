"""What operators read about spans is all there is."""

import re
from pathlib import Path

import pytest

from gateway.config import load
from gateway.observe import semconv

DOCS = (Path(__file__).parent.parent / "docs" / "tracing.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([a-z_.]+)` \| (\w+) \| (.+) \|$", DOCS, re.MULTILINE)
NAMES = {
    value
    for name, value in vars(semconv).items()
    if name.isupper() and isinstance(value, str) and name not in {"SCOPE", "OTHER"}
}


def test_every_attribute_has_its_row_and_no_other_has() -> None:
    assert sorted(name for name, _, _ in ROWS) == sorted(NAMES)


@pytest.mark.parametrize(("name", "where", "meaning"), ROWS)
def test_a_row_says_where_an_attribute_is_and_what_it_means(name: str, where: str, meaning: str) -> None:
    assert where in {"request", "attempt", "both", "resource"}
    assert meaning.endswith(".")


def test_the_example_loads(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)
    path = tmp_path / "gateway.yaml"
    path.write_text(block, encoding="utf-8")
    assert load(path, {"OPENAI_API_KEY": "sk-1", "OTLP_KEY": "k"}).tracing is not None
