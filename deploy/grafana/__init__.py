"""Dashboards as code: `dashboards` says what they show, `panels` how that is written for Grafana."""
