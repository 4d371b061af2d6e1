"""Dashboards, rules and alerts, held against a real Prometheus that scrapes a real gateway in trouble: `make test-ops`."""
