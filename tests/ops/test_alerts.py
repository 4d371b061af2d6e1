"""Alerts fire when their fault is made, and are silent when it is not; every rule has something to say."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.ops.play import GONE, REMEMBERED, TROUBLE, Run
from tests.ops.prometheus import RULES, hastened, program

pytestmark = pytest.mark.ops

HERE = Path(__file__).parent
DOCUMENTS = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in RULES]
EVERY = [rule for document in DOCUMENTS for group in document["groups"] for rule in group["rules"]]


def test_the_rules_are_well_formed() -> None:
    told = subprocess.run(
        [program("promtool"), "check", "rules", "--lint=all", "--lint-fatal", *RULES],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr


def test_each_alert_fires_and_is_silent_on_series_made_for_it() -> None:
    told = subprocess.run(
        [program("promtool"), "test", "rules", HERE / "alerts.yaml"], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stdout + told.stderr


def test_every_time_in_the_rules_is_hastened() -> None:
    rules = "".join(path.read_text(encoding="utf-8") for path in RULES)
    code = re.sub(r"#.*|:ratio_rate\w+|:p\d+_\w+|window: \w+", "", rules)
    times = re.findall(r"\b\d+[smhd]\b", code)
    assert len(times) > 50
    hastened_times = re.findall(
        r"\b\d+[smhd]\b", re.sub(r"#.*|:ratio_rate\w+|:p\d+_\w+|window: \w+", "", hastened(rules))
    )
    assert [_seconds(time) for time in times] == [60 * _seconds(time) for time in hastened_times]


def _seconds(time: str) -> int:
    return int(time[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[time[-1]]


def test_nothing_fires_while_nothing_is_wrong(run: Run) -> None:
    assert run.seen["calm"] == frozenset()


def test_what_is_made_wrong_fires_and_nothing_else_does(run: Run) -> None:
    assert run.seen["trouble"] == TROUBLE


def test_what_is_mended_falls_silent(run: Run) -> None:
    assert run.seen["mended"] <= REMEMBERED


def test_a_job_whose_gateways_are_gone_is_told_of(run: Run) -> None:
    assert {one for one in run.seen["gone"] if one[0] == "GatewayGone"} == GONE


def test_every_alert_has_fired() -> None:
    assert {name for name, _ in TROUBLE | GONE} == {rule["alert"] for rule in EVERY if "alert" in rule}


@pytest.mark.parametrize("record", [rule["record"] for rule in EVERY if "record" in rule])
def test_every_recorded_series_has_values(run: Run, record: str) -> None:
    found = run.prometheus.over(record, run.began, run.ended)
    assert any(value for series in found for _, value in series.points)


def test_no_rule_has_failed(run: Run) -> None:
    rules = [rule for group in run.prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(EVERY)
    assert [rule["lastError"] for rule in rules if rule.get("lastError")] == []
    assert not [line for line in run.prometheus.err if "level=error" in line or "level=warn" in line]


def test_the_documented_config_of_prometheus_is_one_that_it_takes(tmp_path: Path) -> None:
    page = (HERE.parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    (config,) = re.findall(r"^```yaml\n(global: .*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "prometheus.yml").write_text(config, encoding="utf-8")
    for rules in RULES:
        (tmp_path / rules.name).write_text(rules.read_text(encoding="utf-8"), encoding="utf-8")
    told = subprocess.run(
        [program("promtool"), "check", "config", tmp_path / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr


def test_the_documented_command_makes_links_of_paths() -> None:
    page = (HERE.parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"`(sed '.*?')`", page)
    alerts = RULES[1]
    made = subprocess.run(["sh", "-c", f"{command} {alerts}"], capture_output=True, text=True, check=True).stdout
    links = re.findall(r"runbook_url: (.*)", made)
    assert len(links) == alerts.read_text(encoding="utf-8").count("runbook_url")
    assert all(re.fullmatch(r"https://\S+/docs/runbooks\.md#gateway[a-z]+", link) for link in links)
