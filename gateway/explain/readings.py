"""How the upstreams of a running gateway stand, as its `/metrics` say: fetched once, parsed, and put by name.

What answers there may be anything, so what it says is not trusted to be metrics, short, or fit for a terminal. Must not
know the config or any words for people.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

SECONDS = 5.0
LARGEST = 16 << 20  # bytes
_PREFIX = "gateway_upstream_"

Place = tuple[str, str]
"""The names of an upstream and of one of its replicas."""


class UnreadableMetrics(Exception):
    """There is no gateway there, or none that can be read; the message is one line for people."""


@dataclass(frozen=True)
class Readings:
    """What a gateway says of its upstreams. `upstreams`: all that it has. `inflight`: calls; `budget`: attempts left.

    `running`, `waiting`: requests at the engines that tell.
    """

    upstreams: frozenset[str] = frozenset()
    states: Mapping[Place, str] = field(default_factory=dict)
    inflight: Mapping[Place, float] = field(default_factory=dict)
    panicking: frozenset[str] = frozenset()
    key_refused: frozenset[str] = frozenset()
    budget: Mapping[str, float] = field(default_factory=dict)
    running: Mapping[Place, float] = field(default_factory=dict)
    waiting: Mapping[Place, float] = field(default_factory=dict)


def read(url: str) -> Readings:
    """What the gateway says whose admin port is at `url`, with or without `/metrics`. Raises UnreadableMetrics."""
    return parse(_page(url))


def parse(page: str) -> Readings:
    """What a page of metrics says. Raises UnreadableMetrics if it is none, or not a gateway's."""
    upstreams: set[str] = set()
    states: dict[Place, str] = {}
    gauges: dict[str, dict[Place, float]] = {}
    for name, labels, value in _samples(page):
        place = (labels.get("upstream", ""), labels.get("replica", ""))
        if not all(map(str.isprintable, labels.values())) or not place[0]:
            continue
        upstreams.add(place[0])
        if name != "state":
            gauges.setdefault(name, {})[place] = value
        elif value == 1:
            states[place] = labels.get("state", "")
    if not upstreams:
        raise UnreadableMetrics("--url: answers, but not with a gateway's metrics")
    return Readings(
        upstreams=frozenset(upstreams),
        states=states,
        inflight=gauges.get("inflight", {}),
        panicking=_on(gauges.get("panic", {})),
        key_refused=_on(gauges.get("key_refused", {})),
        budget={upstream: left for (upstream, _), left in gauges.get("retry_budget", {}).items()},
        running=gauges.get("engine_running", {}),
        waiting=gauges.get("engine_waiting", {}),
    )


def _on(gauge: Mapping[Place, float]) -> frozenset[str]:
    return frozenset(upstream for (upstream, _), value in gauge.items() if value)


def _samples(page: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Name without the prefix, labels and value of each sample that tells of upstreams."""
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415  # not for `check` to wait for

    ours = "\n".join(line for line in page.split("\n") if line.startswith(_PREFIX))
    try:
        for family in text_string_to_metric_families(ours):
            for sample in family.samples:
                yield sample.name.removeprefix(_PREFIX), sample.labels, sample.value
    except (ValueError, LookupError):
        raise UnreadableMetrics("--url: answers, but not with a gateway's metrics") from None


def _page(url: str) -> str:
    """One request and no more: no proxy, no redirect, no second try."""
    from http.client import HTTPConnection, HTTPException, HTTPSConnection  # noqa: PLC0415  # as above

    host, port, path, secure = _parts(url)
    connection = (HTTPSConnection if secure else HTTPConnection)(host, port, timeout=SECONDS)
    try:
        connection.request("GET", path)
        with connection.getresponse() as response:
            body = response.read(LARGEST + 1)
    except (OSError, HTTPException, UnicodeError) as failure:
        raise UnreadableMetrics(f"--url: cannot be reached: {_reason(failure)}") from None
    finally:
        connection.close()
    if response.status != 200:
        raise UnreadableMetrics(f"--url: answers {response.status}, and not with metrics")
    if len(body) > LARGEST:
        raise UnreadableMetrics(f"--url: answers with more than {LARGEST} bytes")
    return body.decode("utf-8", "replace")


def _reason(failure: Exception) -> str:
    if isinstance(failure, TimeoutError):
        return "no answer in time"
    return (failure.strerror if isinstance(failure, OSError) else None) or "no HTTP"


def _parts(url: str) -> tuple[str, int | None, str, bool]:
    """Host, port, path, and whether by TLS."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in {"http", "https"} or not re.fullmatch("[!-~]+", url):
        raise UnreadableMetrics("--url: must be an http:// or https:// URL with a host")
    path = parts.path.rstrip("/")
    return host, port, path if path.endswith("/metrics") else f"{path}/metrics", parts.scheme == "https"
