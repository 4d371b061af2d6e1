"""What operators read about metrics and log lines is all there is, and true."""

import inspect
import re
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from gateway.flow.dispatch import Tries
from gateway.observe.metrics import PHASES, Metrics
from gateway.observe.record import Recorder
from gateway.observe.upstreams import STATES
from gateway.outcome import Outcome
from tests.observe.samples import exchange, logging_to, used

DOCS_FOLDER = Path(__file__).parent.parent / "docs"
DOCS = (DOCS_FOLDER / "metrics-and-log.md").read_text(encoding="utf-8")
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
    return used()


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


def listed(family: str) -> list[str]:
    """The values that the meaning of a family lists, each with what it means."""
    return re.findall(r"`(\w+)` \(", FAMILIES[family][4])


def test_every_value_of_a_label_with_a_closed_list_is_documented_in_its_order() -> None:
    assert listed("gateway_upstream_state") == list(STATES)
    assert listed("gateway_client_disconnects_total") == list(PHASES)
    reasons = re.findall(r'"(\w+)"', inspect.getsource(Tries._why_stop))
    assert listed("gateway_retries_refused_total") == reasons
    assert listed("gateway_hedges_total") == ["first", "second", "neither"]
    assert listed("gateway_tokens_total") == ["reported", "estimated"]


def test_every_field_of_a_requests_line_is_documented_in_its_order_and_no_other_is(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log") as log:
        Recorder(Metrics(lambda: 0, list, lambda: 0), log.logger).finish(exchange())
        (line,) = log.lines()
    assert [row[0].strip("`") for row in TABLES["Field"]] == list(line)
    types = {str: "string", int: "integer", float: "number", bool: "boolean", list: "list of strings"}
    for name, said, meaning in TABLES["Field"]:
        assert said.removesuffix(" or null") == types[type(line[name.strip("`")])]
        assert meaning.endswith(".")


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS_FOLDER.glob("*.md")))
def test_no_page_speaks_of_a_family_or_a_label_that_there_is_not(page: str) -> None:
    text = (DOCS_FOLDER / page).read_text(encoding="utf-8")
    for family, labels in re.findall(r"\b(gateway_[a-z_]+)\b(?:\{(.*?)\})?", text):
        name = family if family in FAMILIES else re.sub(r"_(bucket|count|sum)$", "", family)
        assert name in FAMILIES
        assert set(re.findall(r"(\w+)[=!]", labels)) <= set(re.findall(r"`(\w+)`", FAMILIES[name][2]))
