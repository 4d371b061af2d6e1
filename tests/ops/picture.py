"""Dashboards as pictures, from what Prometheus says to their queries: near enough to what Grafana shows to see them in docs."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy.grafana.panels import FOLDER, Dashboard
from tests.ops.play import Run
from tests.ops.prometheus import Series

_COLUMNS, _UNIT = 24, 0.3  # of Grafana's grid; inches that one line of it is high
_SIZE, _DOTS, _COLOURS = 14.0, 90, 96  # inches wide, dots an inch, colours in the file
_MOST = 6  # series that a legend has room for
_PAPER, _CARD, _INK, _FAINT = "#f4f5f5", "#ffffff", "#24292e", "#8e949a"
_STEPS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"))


def draw(run: Run, dashboard: Dashboard, target: Path) -> None:
    """Draw a dashboard over the whole of the play into a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from PIL import Image

    panels = json.loads((FOLDER / dashboard.file).read_text(encoding="utf-8"))["panels"]
    lines = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = plt.figure(figsize=(_SIZE, lines * _UNIT), facecolor=_PAPER, dpi=_DOTS)
    for panel in panels:
        _place(figure, panel, lines, run)
    figure.savefig(target)
    plt.close(figure)
    with Image.open(target) as picture:
        picture.convert("RGB").quantize(_COLOURS).save(target, optimize=True)


def _place(figure: Any, panel: Any, lines: int, run: Run) -> None:
    at = panel["gridPos"]
    left, width = at["x"] / _COLUMNS, at["w"] / _COLUMNS
    bottom, height = 1 - (at["y"] + at["h"]) / lines, at["h"] / lines
    title = bottom + height - 0.75 / lines
    if panel["type"] == "row":
        figure.text(left + 0.006, title, panel["title"], size=11, weight="bold", color=_INK)
        return
    card = figure.add_axes((left + 0.003, bottom + 0.1 / lines, width - 0.006, height - 0.2 / lines), facecolor=_CARD)
    card.set(xticks=[], yticks=[])
    for spine in card.spines.values():
        spine.set_color("#dcdfe1")
    figure.text(left + 0.009, title - 0.25 / lines, panel["title"], size=8.5, color=_INK)
    found = {
        _legend(target["legendFormat"], series): series
        for target in panel["targets"]
        for series in run.prometheus.over(target["expr"], run.began, run.ended)
        if series.points
    }
    unit = panel["fieldConfig"]["defaults"]["unit"]
    if panel["type"] == "stat":
        _stat(card, found, unit, run.drawn_at)
        return
    if panel["type"] == "table":
        _table(card, found, run.drawn_at)
        return
    inner = (left + 0.045, bottom + 2.3 / lines, width - 0.055, height - 3.8 / lines)
    axes = figure.add_axes(inner, facecolor=_CARD)
    if panel["type"] == "heatmap":
        _heatmap(axes, found, unit)
    else:
        _timeseries(axes, found, panel["fieldConfig"]["defaults"])
    axes.xaxis.set_major_formatter(lambda at, _: datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S"))
    axes.xaxis.set_major_locator(_locator())
    axes.tick_params(labelsize=6, colors=_FAINT, length=2)
    axes.set_xlim(run.began, run.ended)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#dcdfe1")


def _locator() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4)


def _timeseries(axes: Any, found: dict[str, Series], defaults: Any) -> None:
    stacked = "stacking" in defaults["custom"]
    largest = sorted(found.items(), key=lambda one: -max(value for _, value in one[1].points))
    if stacked:
        _stack(axes, largest)
    else:
        for legend, series in largest:
            axes.plot(*zip(*series.points, strict=True), linewidth=1, label=legend)
    axes.set_ylim(bottom=0, top=defaults.get("max", None) and defaults["max"] * 1.05)
    axes.yaxis.set_major_formatter(_axis(defaults["unit"]))
    axes.yaxis.set_major_locator(_locator())
    axes.grid(visible=True, axis="y", color="#eceeef", linewidth=0.6)
    handles, labels = axes.get_legend_handles_labels()
    options = {"fontsize": 5.5, "frameon": False, "ncols": 2, "labelcolor": _INK, "borderaxespad": 0.0}
    axes.legend(handles[:_MOST], labels[:_MOST], loc="upper left", bbox_to_anchor=(-0.1, -0.13), **options)


def _stack(axes: Any, largest: list[tuple[str, Series]]) -> None:
    times = sorted({at for _, series in largest for at, _ in series.points})
    heights = [[dict(series.points).get(at, 0.0) for at in times] for _, series in largest]
    axes.stackplot(times, heights, labels=[legend for legend, _ in largest], alpha=0.75)


def _heatmap(axes: Any, found: dict[str, Series], unit: str) -> None:
    """Buckets are cumulative: what is in one is what is in none below it."""
    bounds = sorted(found, key=float)
    times = [at for at, _ in found[bounds[-1]].points]
    totals = [[dict(found[bound].points).get(at, 0.0) for at in times] for bound in bounds]
    rows = [
        [high - low for high, low in zip(*pair, strict=True)]
        for pair in zip(totals, [[0.0] * len(times), *totals], strict=False)
    ]
    axes.pcolormesh(times, range(len(bounds)), rows, cmap="Oranges", shading="nearest")
    axes.set_yticks(range(len(bounds)), [_say(float(bound), unit) for bound in bounds], size=5)


def _stat(card: Any, found: dict[str, Series], unit: str, when: float) -> None:
    for series in found.values():
        before = [value for at, value in series.points if at <= when]
        card.text(
            0.5,
            0.42,
            _say(before[-1], unit),
            ha="center",
            va="center",
            size=19,
            color="#1f60c4",
            transform=card.transAxes,
        )


def _table(card: Any, found: dict[str, Series], when: float) -> None:
    rows = [legend for legend, series in found.items() if any(abs(at - when) < 1 for at, _ in series.points)]
    for number, row in enumerate(sorted(rows)[:11]):
        card.text(0.03, 0.82 - number * 0.075, row, size=7, color=_INK, transform=card.transAxes)


def _legend(pattern: str, series: Series) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: series.labels.get(found[1], ""), pattern)


def _axis(unit: str) -> Callable[[float, int], str]:
    return lambda value, _: _say(value, unit)


def _say(value: float, unit: str) -> str:
    """A number as Grafana would say it, in few digits."""
    if unit == "percentunit":
        return f"{value * 100:.4g} %"
    if value in (float("inf"), 0.0):
        return "∞" if value else "0"
    step, prefix = next((step for step in _STEPS if abs(value) >= step[0]), _STEPS[-1])
    if unit != "s" and step < 1:
        step, prefix = 1.0, ""
    ends = {"s": "s", "reqps": " req/s", "bytes": "B", "currencyUSD": " $", "none": ""}
    if unit == "s" and step > 1:
        step, prefix = 1.0, ""
    end = ends[unit] if unit in ends else unit.removeprefix("suffix:")
    return f"{value / step:.3g}{' ' if unit in ('s', 'bytes') else ''}{prefix}{end}"
