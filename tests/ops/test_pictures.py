"""The pictures in docs/images are of these dashboards, drawn from their own queries."""

from pathlib import Path

import pytest

from deploy.grafana.dashboards import DASHBOARDS
from deploy.grafana.panels import Dashboard
from tests.ops.picture import draw
from tests.ops.play import Run

pytestmark = pytest.mark.ops


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.name)
def test_a_dashboard_can_be_drawn_in_a_small_file(run: Run, dashboard: Dashboard, pictures: Path) -> None:
    target = pictures / f"{dashboard.name}.png"
    draw(run, dashboard, target)
    assert 20_000 < target.stat().st_size < 300_000
