"""What metrics say, the gateway's and those of engines. They tell nobody when they change, so they are asked until they have."""

import re
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import TypeVar

from tests.support.processes import GatewayProcess

T = TypeVar("T")

PATIENCE = 30.0  # seconds
PAUSE = 0.1  # seconds from one look to the next


def until(look: Callable[[], T], wanted: Callable[[T], bool], patience: float = PATIENCE) -> T:
    """What is seen, as soon as it is as `wanted`. Raises LookupError."""
    deadline = time.monotonic() + patience
    pause = threading.Event()
    while not wanted(seen := look()):
        if time.monotonic() > deadline:
            raise LookupError(f"still not so: {seen}")
        pause.wait(PAUSE)
    return seen


def page(url: str, **headers: str) -> list[str]:
    """The samples on a page of metrics."""
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return [line for line in answer.read().decode().splitlines() if line and not line.startswith("#")]


def sums(url: str, **headers: str) -> dict[str, float]:
    """Metrics by their names alone; of several series the sum."""
    found: dict[str, float] = {}
    for line in page(url, **headers):
        name, _, value = line.rpartition(" ")
        name = name.partition("{")[0]
        found[name] = found.get(name, 0.0) + float(value)
    return found


def metric(gateway: GatewayProcess, name: str, **labels: str) -> float | None:
    """The first sample of the gateway's that has these labels; None where there is none."""
    for line in page(f"{gateway.admin_url}/metrics"):
        said = dict(re.findall(r'(\w+)="([^"]*)"', line))
        if re.match(rf"{name}\b", line) and labels.items() <= said.items():
            return float(line.rpartition(" ")[2])
    return None


def wait_value(gateway: GatewayProcess, value: float | None, name: str, **labels: str) -> None:
    """Wait until that sample has this value."""
    until(lambda: metric(gateway, name, **labels), lambda seen: seen == value)
