"""Dashboards are what their source says, each panel helps whoever reads it, and no query asks for what there is not."""

import json
import re

import pytest

from deploy.grafana.dashboards import DASHBOARDS, VARIABLES
from deploy.grafana.panels import FOLDER, Dashboard, Panel, written
from tests.test_metrics_docs import FAMILIES

PANELS = [
    pytest.param(panel, id=f"{dashboard.title}/{panel.title}") for dashboard in DASHBOARDS for panel in dashboard.panels
]
BESIDES = {
    "process_open_fds",
    "process_max_fds",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "ALERTS",
}
SCRAPED = {"namespace", "job", "instance", "le"}


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.name)
def test_the_file_is_what_the_source_makes(dashboard: Dashboard) -> None:
    found = (FOLDER / dashboard.file).read_text(encoding="utf-8")
    assert found == written(dashboard), "run `make dashboards`, and commit what it writes"


def test_there_is_no_other_file_of_a_dashboard() -> None:
    assert {path.name for path in FOLDER.glob("*.json")} == {dashboard.file for dashboard in DASHBOARDS}


def test_there_are_four_of_them() -> None:
    assert [dashboard.title for dashboard in DASHBOARDS] == ["Overview", "Upstreams", "Models and tokens", "Streams"]


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.name)
def test_what_is_shown_can_be_chosen(dashboard: Dashboard) -> None:
    document = json.loads((FOLDER / dashboard.file).read_text(encoding="utf-8"))
    names = [variable["name"] for variable in document["templating"]["list"]]
    assert (
        names[:4]
        == ["datasource", *(variable.name for variable in VARIABLES)]
        == ["datasource", "namespace", "model", "upstream"]
    )
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(document["panels"]))) - {"__rate_interval"}
    assert used == set(names)


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_has_a_unit_and_says_in_one_line_what_to_do_when_it_looks_wrong(panel: Panel) -> None:
    assert panel.unit
    assert panel.does.endswith(".")
    assert "\n" not in panel.does
    assert len(panel.does) <= 180
    assert re.search(r"\bif\b|[;,:] |\(docs/", panel.does)


@pytest.mark.parametrize("panel", PANELS)
def test_a_panels_queries_ask_for_documented_families_and_labels(panel: Panel) -> None:
    for query in panel.queries.values():
        for name, labels in re.findall(r"\b(gateway_\w+|process_\w+|ALERTS)\b(?:\{([^}]*)\})?", query):
            family = re.sub(r"_(bucket|sum|count)$", "", name)
            if name in FAMILIES or family in FAMILIES:
                known = set(re.findall(r"`(\w+)`", FAMILIES.get(name, FAMILIES.get(family, []))[2])) | SCRAPED
                assert set(re.findall(r"(\w+)[=!]~?\"", labels)) <= known, query
            else:
                assert name in BESIDES, query


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.name)
def test_panels_do_not_overlap_and_have_a_number_of_their_own(dashboard: Dashboard) -> None:
    panels = json.loads((FOLDER / dashboard.file).read_text(encoding="utf-8"))["panels"]
    cells = [
        (left, line)
        for panel in panels
        for left in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for line in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(left for left, _ in cells) == 23
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.name)
def test_no_series_is_lost_for_want_of_a_letter(dashboard: Dashboard) -> None:
    panels = json.loads((FOLDER / dashboard.file).read_text(encoding="utf-8"))["panels"]
    shown = [len(panel["targets"]) for panel in panels if panel["type"] != "row"]
    assert shown == [len(panel.queries) for panel in dashboard.panels]
