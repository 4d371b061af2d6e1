"""A real Prometheus for which an hour lasts a minute, so that what takes an hour to fire does so while a test waits."""

import json
import math
import re
import shutil
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import Process
from tests.support.upstream import unused_port

FOLDER = Path(__file__).parent.parent.parent / "deploy" / "prometheus"
RULES = (FOLDER / "rules.yaml", FOLDER / "alerts.yaml")
_SHORTER = {"m": (1, "s"), "h": (1, "m"), "d": (24, "m")}  # a sixtieth of each
_CHOSEN = {
    "$__rate_interval": "10s",
    "$namespace": ".*",
    "$model": ".*",
    "$upstream": ".*",
    "$input_price": "0.15",
    "$output_price": "0.60",
}


def program(name: str) -> str:
    """Where a program of Prometheus's is. Without it nothing here can be told, so its lack is a failure."""
    found = shutil.which(name)
    if found is None:
        raise LookupError(
            f"{name} is not on the PATH: `make test-ops` fetches Debian's package prometheus; elsewhere install it"
        )
    return found


def hastened(rules: str) -> str:
    """The rules, with a sixtieth of every time in them."""

    def shorter(found: re.Match[str]) -> str:
        factor, unit = _SHORTER[found[2]]
        return f"{int(found[1]) * factor}{unit}"

    times = r"(?<=\[){0}(?=\])|(?<=for: ){0}|(?<=interval: ){0}".format(r"(\d+)([mhd])")
    return re.sub(times, lambda found: shorter(re.fullmatch(r"(\d+)([mhd])", found[0])), rules)  # type: ignore[arg-type]


def chosen(query: str) -> str:
    """A dashboard's query as Grafana asks it, with everything chosen."""
    for variable, value in _CHOSEN.items():
        query = query.replace(variable, value)
    return query


@dataclass(frozen=True)
class Series:
    """What a query found: labels, and values by their time in seconds."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


class Prometheus(Process):
    """Scrapes every second what `jobs` names, host and port by job, and rules over it. `folder`: an empty one for it."""

    def __init__(self, folder: Path, jobs: Mapping[str, str]) -> None:
        for rules in RULES:
            (folder / rules.name).write_text(hastened(rules.read_text(encoding="utf-8")), encoding="utf-8")
        scrapes = [
            {"job_name": job, "static_configs": [{"targets": [target], "labels": {"namespace": "llm"}}]}
            for job, target in jobs.items()
        ]
        document = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(folder / rules.name) for rules in RULES],
            "scrape_configs": scrapes,
        }
        config = folder / "prometheus.yml"
        config.write_text(json.dumps(document), encoding="utf-8")
        self.url = f"http://127.0.0.1:{unused_port()}"
        super().__init__(
            [
                program("prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
                "--query.lookback-delta=5s",
            ]
        )

    def started(self) -> None:
        """Wait until it answers."""
        self.err.wait(lambda line: "Server is ready to receive web requests" in line, patience=30)

    def ask(self, path: str, **parameters: str) -> Any:
        """What its API says."""
        with urllib.request.urlopen(
            f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=10
        ) as answer:
            return json.load(answer)["data"]

    def alerts(self) -> list[dict[str, Any]]:
        """Those that fire."""
        return [alert for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"]

    def healthy_targets(self) -> int:
        """How many it reaches."""
        return sum(target["health"] == "up" for target in self.ask("targets")["activeTargets"])

    def over(self, query: str, began: float, ended: float) -> list[Series]:
        """What a query finds from second to second, without what is no number."""
        found = self.ask("query_range", query=chosen(query), start=str(began), end=str(ended), step="1")["result"]
        return [
            Series(
                one["metric"], tuple((at, float(value)) for at, value in one["values"] if math.isfinite(float(value)))
            )
            for one in found
        ]
