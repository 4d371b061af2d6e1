"""Every query of every panel finds something, and the files are dashboards by Grafana's own schema."""

import json
from typing import Any

import pytest

from deploy.grafana.dashboards import DASHBOARDS
from deploy.grafana.panels import FOLDER
from tests.ops.play import Run
from tests.ops.prometheus import chosen

pytestmark = pytest.mark.ops

QUERIES = [
    pytest.param(query, id=f"{dashboard.title}/{panel.title}/{legend}")
    for dashboard in DASHBOARDS
    for panel in dashboard.panels
    for legend, query in panel.queries.items()
]


@pytest.mark.parametrize("query", QUERIES)
def test_every_query_finds_something(run: Run, query: str) -> None:
    found = run.prometheus.over(query, run.began, run.ended)
    assert any(value for series in found for _, value in series.points), chosen(query)


@pytest.mark.parametrize("query", QUERIES)
def test_every_query_is_promql(query: str) -> None:
    import promql_parser  # only what runs these tests has it

    promql_parser.parse(chosen(query))


def variables() -> list[Any]:
    documents = [json.loads((FOLDER / dashboard.file).read_text(encoding="utf-8")) for dashboard in DASHBOARDS]
    return [
        pytest.param(variable["query"]["query"], id=f"{document['uid']}/{variable['name']}")
        for document in documents
        for variable in document["templating"]["list"]
        if variable["type"] == "query"
    ]


@pytest.mark.parametrize("values", variables())
def test_every_variable_has_values_to_choose_from(run: Run, values: str) -> None:
    selector, label = values.removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
    found = run.prometheus.over(selector, run.began, run.ended)
    assert {series.labels[label] for series in found} - {""}


def lost(written: Any, read: Any, at: str = "") -> list[str]:
    """Where a document has what its reading has not: a key that the schema does not know, or another value."""
    if isinstance(written, dict) and isinstance(read, dict):
        return [place for key in written for place in lost(written[key], read.get(key), f"{at}/{key}")]
    if isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        return [place for number, one in enumerate(written) for place in lost(one, read[number], f"{at}/{number}")]
    return [] if written == read else [at]


@pytest.mark.parametrize("name", [dashboard.file for dashboard in DASHBOARDS])
def test_the_schema_knows_everything_in_the_file(name: str) -> None:
    written = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    assert lost(written, read(written)) == []


def read(document: Any) -> Any:
    """The document as Grafana's own types have it."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard as Schema

    register_default_plugins()
    return json.loads(JSONEncoder().encode(Schema.from_json(document)))


def test_a_key_that_the_schema_does_not_know_would_be_found() -> None:
    document = json.loads((FOLDER / "overview.json").read_text(encoding="utf-8"))
    document["panels"][1]["options"]["colourMode"] = "none"
    document["panels"][1]["titel"] = "x"
    assert lost(document, read(document)) == ["/panels/1/options/colourMode", "/panels/1/titel"]
