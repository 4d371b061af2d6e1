"""`python -m deploy.grafana` writes the dashboards beside this file, as Grafana imports them."""

from deploy.grafana.dashboards import DASHBOARDS
from deploy.grafana.panels import FOLDER, written

if __name__ == "__main__":
    for dashboard in DASHBOARDS:
        (FOLDER / dashboard.file).write_text(written(dashboard), encoding="utf-8")
