"""How a dashboard is written for Grafana 10 and later: the JSON that it exports, and where each panel stands.

What is shown is said in `dashboards`. Must not know any metric.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).parent

Kind = Literal["timeseries", "stat", "heatmap", "table"]

_WIDTH = 24  # columns that Grafana has
_HEIGHTS: dict[Kind, int] = {"timeseries": 8, "stat": 4, "heatmap": 8, "table": 8}
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_CALCS = ["lastNotNull", "max"]


@dataclass(frozen=True)
class Panel:
    """One picture. `queries`: PromQL, each by its legend; `{{label}}` stands for a label's value.

    `unit`: by Grafana's name for it. `does`: what it shows, and what to do when it looks wrong, in one line.
    `stacked`: the series are parts of a whole. `top`: where its axis ends, if that is known. `width`: of 24 columns.
    """

    title: str
    unit: str
    does: str
    queries: dict[str, str]
    kind: Kind = "timeseries"
    width: int = 8
    stacked: bool = False
    top: float | None = None


@dataclass(frozen=True)
class Row:
    """A heading, and the panels under it, from left to right."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """What can be chosen at the top. `values`: a query of Prometheus for label values; `number`: or a number to type in."""

    name: str
    label: str
    values: str = ""
    number: str = ""


@dataclass(frozen=True)
class Dashboard:
    """One page. `name` makes its file's name and its `uid`, by which links find it."""

    name: str
    title: str
    about: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]

    @property
    def uid(self) -> str:
        """The same in every Grafana."""
        return f"gateway-{self.name}"

    @property
    def file(self) -> str:
        """Where it is written."""
        return f"{self.name}.json"

    @property
    def panels(self) -> tuple[Panel, ...]:
        """Of all rows."""
        return tuple(panel for row in self.rows for panel in row.panels)


def written(dashboard: Dashboard) -> str:
    """The file that Grafana imports."""
    return json.dumps(_dashboard(dashboard), indent=2, ensure_ascii=False) + "\n"


def _dashboard(dashboard: Dashboard) -> dict[str, Any]:
    links = {
        "title": "Gateway",
        "type": "dashboards",
        "tags": ["gateway"],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "icon": "external link",
        "tooltip": "",
        "url": "",
    }
    return {
        "uid": dashboard.uid,
        "title": f"Gateway / {dashboard.title}",
        "description": dashboard.about,
        "tags": ["gateway"],
        "schemaVersion": 38,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "links": [links],
        "templating": {"list": [_datasource(), *map(_variable, dashboard.variables)]},
        "annotations": {"list": []},
        "panels": _panels(dashboard.rows),
    }


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
        "multi": False,
        "includeAll": False,
    }


def _variable(variable: Variable) -> dict[str, Any]:
    common = {"name": variable.name, "label": variable.label, "hide": 0}
    if variable.number:
        return {**common, "type": "textbox", "query": variable.number}
    return {
        **common,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": variable.values, "refId": variable.name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",  # and so what has no such label, or an empty one
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _panels(rows: tuple[Row, ...]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    top = 0
    for row in rows:
        made.append(_row(row, len(made) + 1, top))
        top += 1
        left = height = 0
        for panel in row.panels:
            if left + panel.width > _WIDTH:
                top, left, height = top + height, 0, 0
            at = {"h": _HEIGHTS[panel.kind], "w": panel.width, "x": left, "y": top}
            made.append(_panel(panel, len(made) + 1, at))
            left, height = left + panel.width, max(height, at["h"])
        top += height
    return made


def _row(row: Row, number: int, top: int) -> dict[str, Any]:
    at = {"h": 1, "w": _WIDTH, "x": 0, "y": top}
    return {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": at, "panels": []}


def _panel(panel: Panel, number: int, at: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, **_FIELDS[panel.kind]}
    if panel.kind == "timeseries":
        defaults["min"] = 0
    if panel.top is not None:
        defaults["max"] = panel.top
    if panel.stacked:
        stacking = {"mode": "normal", "group": "A"}
        defaults["custom"] = {**defaults["custom"], "fillOpacity": 40, "lineWidth": 0, "stacking": stacking}
    options = _OPTIONS[panel.kind]
    if panel.kind == "heatmap":
        options = {**options, "yAxis": {**options["yAxis"], "unit": panel.unit}}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.does,
        "datasource": _DATASOURCE,
        "gridPos": at,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            _target(panel.kind, *query, ref) for query, ref in zip(panel.queries.items(), "ABCDEF", strict=False)
        ],
    }


def _target(kind: Kind, legend: str, query: str, ref: str) -> dict[str, Any]:
    target: dict[str, Any] = {"refId": ref, "datasource": _DATASOURCE, "expr": query, "legendFormat": legend}
    if kind == "table":
        return {**target, "instant": True, "range": False, "format": "table"}
    if kind == "heatmap":
        return {**target, "legendFormat": "{{le}}", "range": True, "format": "heatmap"}
    return {**target, "range": True}


_FIELDS: dict[Kind, dict[str, Any]] = {
    "timeseries": {
        "color": {"mode": "palette-classic"},
        "custom": {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 8, "showPoints": "never", "spanNulls": False},
    },
    "stat": {"color": {"mode": "thresholds"}},
    "heatmap": {},
    "table": {"color": {"mode": "thresholds"}},
}

_OPTIONS: dict[Kind, dict[str, Any]] = {
    "timeseries": {
        "legend": {"showLegend": True, "displayMode": "table", "placement": "bottom", "calcs": _CALCS},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "graphMode": "area",
        "colorMode": "none",
        "justifyMode": "auto",
        "textMode": "auto",
        "orientation": "auto",
    },
    "heatmap": {
        "calculate": False,
        "cellGap": 1,
        "color": {
            "mode": "scheme",
            "scheme": "Oranges",
            "steps": 64,
            "fill": "dark-orange",
            "exponent": 0.5,
            "reverse": False,
        },
        "yAxis": {"axisPlacement": "left", "reverse": False},
        "legend": {"show": True},
        "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": False},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "rowsFrame": {"layout": "auto"},
    },
    "table": {"showHeader": True, "cellHeight": "sm"},
}
