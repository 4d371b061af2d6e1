"""Every alert has a runbook and is shown firing and silent, on series with just the labels that a gateway's have."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.observe.samples import used

ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / "deploy" / "prometheus"
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((RULES / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
RECORDS = [
    rule["record"]
    for group in yaml.safe_load((RULES / "rules.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
SHOWN = yaml.safe_load((ROOT / "tests" / "ops" / "alerts.yaml").read_text(encoding="utf-8"))
RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\w+)\n\n(.*?)(?=^## |\Z)", RUNBOOKS, re.MULTILINE | re.DOTALL))
SCRAPED = {"namespace", "job", "instance"}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: f"{alert['alert']}-{alert['labels'].get('window', '')}")
def test_an_alert_says_how_bad_it_is_what_is_wrong_and_where_to_read_on(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["runbook_url"] == f"docs/runbooks.md#{alert['alert'].lower()}"


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert list(SECTIONS) == list(dict.fromkeys(alert["alert"] for alert in ALERTS))


@pytest.mark.parametrize("name", SECTIONS)
def test_a_runbook_tells_what_it_means_what_to_look_at_and_what_to_do(name: str) -> None:
    assert re.findall(r"^\*\*(.+?)\*\*", SECTIONS[name], re.MULTILINE) == ["Means", "Look at", "Do"]


def test_every_panel_that_a_runbook_names_exists() -> None:
    from deploy.grafana.dashboards import DASHBOARDS

    short = {"Models and tokens": "Models"}
    panels = {(short.get(board.title, board.title), panel.title) for board in DASHBOARDS for panel in board.panels}
    titles = {title for _, title in panels}
    named = [re.sub(r"\s+", " ", name) for name in re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", RUNBOOKS)]
    assert len(named) > 30
    for name in named:
        board, slash, title = name.partition(" / ")
        if name != "Dashboard / Panel":
            found = (board, title) in panels if slash else name in titles
            assert found or any(one.startswith(title or name) for one in titles), name


@pytest.mark.parametrize("name", sorted({alert["alert"] for alert in ALERTS}))
def test_an_alert_is_shown_firing_and_silent(name: str) -> None:
    cases = [case for test in SHOWN["tests"] for case in test["alert_rule_test"] if case["alertname"] == name]
    assert {bool(case["exp_alerts"]) for case in cases} == {True, False}


def test_every_alert_of_two_windows_is_shown_in_both() -> None:
    shown = {
        (case["alertname"], alert["exp_labels"].get("window"))
        for test in SHOWN["tests"]
        for case in test["alert_rule_test"]
        for alert in case["exp_alerts"]
    }
    assert shown == {(alert["alert"], alert["labels"].get("window")) for alert in ALERTS}


def test_the_series_that_they_are_shown_on_are_as_the_gateway_exports_them() -> None:
    exported = {
        (sample.name, frozenset(sample.labels)) for family in used().registry.collect() for sample in family.samples
    }
    series = {one["series"] for test in SHOWN["tests"] for one in test["input_series"]}
    assert len(series) > 50
    for one in series:
        name, _, labels = one.partition("{")
        assert (name, frozenset(re.findall(r"(\w+)=", labels)) - SCRAPED) in exported, one


def test_values_of_labels_are_such_as_there_are() -> None:
    page = (ROOT / "docs" / "metrics-and-log.md").read_text(encoding="utf-8")
    errors = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    texts = [alert["expr"] for alert in ALERTS] + [
        one["series"] for test in SHOWN["tests"] for one in test["input_series"]
    ]
    for text in texts:
        for values in re.findall(r'\b(?:outcome|reason|state)[=!]~?"([^"]+)"', text):
            for value in values.split("|"):
                assert f"`{value}`" in page + errors, value


def test_what_alerts_and_dashboards_take_from_recorded_series_is_recorded() -> None:
    from deploy.grafana.dashboards import DASHBOARDS

    queries = [alert["expr"] for alert in ALERTS] + [
        query for board in DASHBOARDS for panel in board.panels for query in panel.queries.values()
    ]
    taken = set(re.findall(r"\bgateway:[\w:]+", " ".join(queries)))
    assert taken == set(RECORDS)
