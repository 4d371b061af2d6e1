"""What operators read about metrics and log lines is all there is, and true."""

import re
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from gateway.observe.metrics import Metrics
from gateway.observe.record import Recorder
from gateway.outcome import Outcome
from tests.observe.samples import exchange, logging_to

DOCS = (Path(__file__).parent.parent / "docs" / "metrics-and-log.md").read_text(encoding="utf-8")
TABLES = {
    header.split("|")[1].strip(): [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows.strip().splitlines()
    ]
    for header, rows in re.findall(r"^(\|.*\|)\n\|[-|]+\|\n((?:\|.*\|\n)+)", DOCS, re.MULTILINE)
}
FAMILIES = {row[0].strip("`"): row for row in TABLES["Family"]}


@pytest.fixture
def metrics() -> Metrics:
    """With a sample in every family."""
    made = Metrics(lambda: 0, lambda: [("vllm", "vllm-0:8000", 0)], lambda: 0)
    made.finish(exchange())
    made.refused(431)
    return made


def test_every_family_is_documented_with_its_type_and_no_other_is(metrics: Metrics) -> None:
    page = generate_latest(metrics.registry).decode()
    announced = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE))
    assert {name: row[1] for name, row in FAMILIES.items()} == announced


def test_every_label_is_documented(metrics: Metrics) -> None:
    labels: dict[str, list[str]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            name = re.sub(r"_(bucket|count|sum)$", "", sample.name)
            labels.setdefault(name, [label for label in sample.labels if label != "le"])
    assert {name: re.findall(r"`(\w+)`", row[2]) for name, row in FAMILIES.items()} == labels


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_says_what_it_means_and_what_it_is_good_for(name: str) -> None:
    _, _, _, unit, meaning, use = FAMILIES[name]
    assert unit or name.endswith("_info")
    assert meaning.endswith(".")
    assert use.endswith(".")


def test_every_outcome_is_documented() -> None:
    told = DOCS[DOCS.index("Outcomes:") : DOCS.index("Times per token")]
    assert set(re.findall(r"`(\w+)`", told)) == {outcome.value for outcome in Outcome}


def test_every_field_of_a_requests_line_is_documented_in_its_order_and_no_other_is(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log") as log:
        Recorder(Metrics(lambda: 0, list, lambda: 0), log.logger).finish(exchange())
        (line,) = log.lines()
    assert [row[0].strip("`") for row in TABLES["Field"]] == list(line)
    types = {str: "string", int: "integer", float: "number", bool: "boolean"}
    for name, said, meaning in TABLES["Field"]:
        assert said.removesuffix(" or null") == types[type(line[name.strip("`")])]
        assert meaning.endswith(".")
