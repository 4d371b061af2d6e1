"""Thousands of calls of every sort, through a gateway on real sockets, and every series and every line held to what happened.

What happened is known from outside: the upstreams say what they did to each attempt and when, the plan says what the
caller did, and what follows from that is worked out in expected.py.
"""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.call import Usage
from tests.support.client import Caller
from tests.support.clock import virtual_time
from tests.support.stage import Cast, request, staged_many
from tests.truth.expected import FAILURES, HEDGE_AFTER, QUEUE_WAIT, SILENCE, Expected, Labels
from tests.truth.play import Deed, Ledger, Plan, now

anyio_backend = virtual_time

CALLS = 3000
GRID = 8  # moments in a second at which calls begin
GAUGES = (
    "process_",
    "gateway_upstream_",
    "gateway_inflight_requests",
    "gateway_build_info",
    "gateway_log_lines_dropped",
)
PATIENT = {"attempts": 3, "budget": 1.0, "reserve": 100_000}
ONCE = {"attempts": 1}
SECTIONS: dict[str, Any] = {
    "upstreams": {
        "small": {"concurrency": {"limit": 1, "queue": 1, "wait": QUEUE_WAIT}, "retry": ONCE},
        # Two replicas that are one origin, and have one connection between them.
        "narrow": {"ends": ["/a", "/b"], "concurrency": {"limit": 1}, "transport": {"max_connections": 1}},
        "poor": {"retry": {"attempts": 3, "budget": 0, "reserve": 0}},
    },
    "models": {
        "t-*": {"targets": [{"upstream": "up"}]},
        "two-*": {"targets": [{"upstream": "up"}, {"upstream": "other"}]},
        "h-*": {"targets": [{"upstream": "up"}], "hedge": {"after": HEDGE_AFTER}},
        **{f"{name}-*": {"targets": [{"upstream": name}]} for name in ("small", "narrow", "poor", "locked")},
    },
    "timeouts": {"first_token": SILENCE, "reply": SILENCE, "idle": SILENCE, "ping": 1000, "pool": 10},
    "retry": PATIENT,
    "breaker": {"failures": 1_000_000, "served": 0},
}


class Author:
    """Makes plans, by chance that is always the same."""

    def __init__(self) -> None:
        self.rng = random.Random(5)
        self.plans: list[Plan] = []

    def eighths(self, least: int, most: int) -> float:
        return self.rng.randint(least, most) / GRID

    def usage(self) -> Usage | None:
        if self.rng.random() < 0.3:
            return None
        rng = self.rng
        cached, reasoning = rng.choice([0, rng.randint(1, 50)]), rng.choice([0, rng.randint(1, 20)])
        return Usage(
            cached + rng.randint(1, 5000), reasoning + rng.choice([0, 1, 2, rng.randint(3, 900)]), cached, reasoning
        )

    def served(self, *, stream: bool, think: float | None = None) -> Deed:
        return Deed("served", self.eighths(0, 12) if think is None else think, self.pauses(stream=stream), self.usage())

    def pauses(self, *, stream: bool) -> tuple[float, ...]:
        return tuple(self.eighths(0, 12) for _ in range(self.rng.randint(2, 5))) if stream else ()

    def add(self, model: str, *deeds: Deed, start: float | None = None, **more: Any) -> None:
        number = len(self.plans)
        at = self.eighths(0, 150 * GRID) if start is None else start
        self.plans.append(Plan(number, at, f"{model}-{number}", deeds, prompt=self.rng.randint(0, 400), **more))

    def any(self) -> None:
        """One of the calls that get in nobody's way."""
        rng = self.rng
        stream = rng.random() < 0.5
        sort = rng.choices(["served", "embedding", "fails", "breaks", "leaves", "deadline", "hedged", "refused", "alone"],
                           [30, 5, 25, 10, 10, 5, 8, 8, 4])[0]  # fmt: skip
        getattr(self, sort)(stream=stream)

    def embedding(self, *, stream: bool) -> None:
        self.add("t", Deed(think=self.eighths(0, 8), usage=Usage(self.rng.randint(1, 300))), kind="embeddings")

    def fails(self, *, stream: bool) -> None:
        """One to three attempts that fail before anything is said; the third is the last, and may be served."""
        ends = ["500", "503", "429", "reset", "stalled", "early_cut" if stream else "truncated"]
        failures = [
            Deed(end, 0.0 if end == "stalled" else self.eighths(9, 14))  # type: ignore[arg-type]
            for end in self.rng.choices(ends, k=self.rng.randint(1, 3))
        ]
        last = [] if len(failures) == 3 else [self.served(stream=stream)]
        if last and self.rng.random() < 0.2:
            last = [Deed("400", self.eighths(0, 8))]
        self.add(self.rng.choice(["t", "two"]), *failures, *last, stream=stream)

    def breaks(self, *, stream: bool) -> None:
        """A stream that has begun."""
        ends = self.rng.choice(["cut", "silent", "error_event"])
        self.add("t", Deed(ends, self.eighths(0, 8), self.pauses(stream=True)), stream=True)  # type: ignore[arg-type]

    def leaves(self, *, stream: bool) -> None:
        """Its caller does, between two moments of the grid."""
        deed = self.served(stream=stream, think=self.eighths(8, 16))
        most = deed.think + sum(deed.pauses) - 1 / GRID
        at = self.rng.randint(0, int(most * GRID)) / GRID + 1 / (2 * GRID)
        if self.rng.random() < 0.2:
            self.add("unknown", start=None, leaves=at, fault="body")
        else:
            self.add("t", deed, stream=stream, leaves=at)

    def deadline(self, *, stream: bool) -> None:
        self.add("t", self.served(stream=stream, think=2.5), stream=stream, deadline=self.eighths(2, 16))

    def hedged(self, *, stream: bool) -> None:
        first, second = self.rng.choice([(3.0, 0.25), (1.5, 2.5), (0.5, None)])
        deeds = [self.served(stream=stream, think=first)]
        if second is not None:
            deeds.append(self.served(stream=stream, think=second))
        # its first pause would have to be taken into account as well
        deeds = [Deed(one.ends, one.think, (0.0, *one.pauses) if stream else (), one.usage) for one in deeds]
        self.add("h", *deeds, stream=stream, hedged=True)

    def refused(self, *, stream: bool) -> None:
        fault = self.rng.choice(["model", "key", "json", "method"])
        self.add("unknown", stream=stream and fault == "model", fault=fault)

    def alone(self, *, stream: bool) -> None:
        """No second attempt: it would have to be paid for, or there is nowhere else with another key."""
        model, ends = self.rng.choice([("poor", "500"), ("locked", "401")])
        self.add(model, Deed(ends, self.eighths(1, 8)), stream=stream)  # type: ignore[arg-type]

    # Those that do: each group has its upstream for itself.

    def groups(self) -> None:
        for number in range(20):
            start = 1000.0 + 20 * number
            self.queue(start)
            self.pool(start + 10)

    def queue(self, start: float) -> None:
        """One call at once; one may wait, for a second; a third is refused."""
        stream = self.rng.random() < 0.5
        step = 1 / GRID
        busy = self.rng.choice([0.5, 0.75, 2.0])
        self.add("small", Deed("served", busy, (), self.usage()), start=start)
        if self.rng.random() < 0.3:
            self.add("small", start=start + step, leaves=0.1875, waits=(("queue", 0.1875),))
            return
        if busy < QUEUE_WAIT:
            waits = (("queue", busy - step),)
            self.add("small", self.served(stream=stream), start=start + step, stream=stream, waits=waits)
        else:
            self.add("small", start=start + step, waits=(("queue", QUEUE_WAIT),), shed=True)
        self.add("small", start=start + 2 * step, shed=True)

    def pool(self, start: float) -> None:
        busy = self.eighths(2, 16)
        self.add("narrow", Deed("served", busy, (), self.usage()), start=start)
        waits = (("pool", busy - 1 / GRID),)
        self.add("narrow", Deed("served", 0.5, (), self.usage()), start=start + 1 / GRID, waits=waits)


async def perform(plan: Plan, stage: Cast, began_at: float) -> None:
    """Do what the caller does."""
    await asyncio.sleep(began_at + plan.start - now())
    async with await stage.caller() as caller:
        await caller.send(_bytes(plan))
        if plan.leaves is None:
            await caller.response()
        else:
            await _stay(caller, plan.leaves)


async def _stay(caller: Caller, seconds: float) -> None:
    """Read what comes, for so long."""
    try:
        async with asyncio.timeout(seconds):
            await caller.read_to_end()
    except TimeoutError:
        return
    raise AssertionError("it was to leave before the end")


def _bytes(plan: Plan) -> bytes:
    words = "x" * plan.prompt
    model = "nobody" if plan.fault == "model" else plan.model
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": words}], "stream": plan.stream}
    path = "/v1/chat/completions"
    if plan.kind == "embeddings":
        body, path = {"model": model, "input": words}, "/v1/embeddings"
    headers = {"x_request_id": plan.request_id}
    if plan.fault == "key":
        headers["authorization"] = "Bearer nobody-knows-this"
    if plan.deadline is not None:
        headers["x_request_timeout_ms"] = str(round(plan.deadline * 1000))
    whole = request(b"{" if plan.fault == "json" else body, path, **headers)
    if plan.fault == "method":
        return whole.replace(b"POST", b"PUT", 1)
    return whole[:-1] if plan.fault == "body" else whole


def scraped(stage: Cast) -> Iterator[tuple[tuple[str, Labels], float]]:
    """Every series that counts."""
    for family in stage.gateway.metrics.registry.collect():
        for sample in family.samples:
            name = sample.name
            if name.startswith("gateway_upstream_attempts") or not name.startswith(GAUGES):
                end = {"le": str(float(sample.labels["le"]))} if "le" in sample.labels else {}
                yield (name, frozenset((sample.labels | end).items())), sample.value


async def test_every_series_and_every_line_says_what_happened() -> None:
    author = Author()
    while len(author.plans) < CALLS:
        author.any()
    author.groups()
    ledger = Ledger(author.plans)
    scripts = {name: [ledger.script(name)] for name in ("small", "narrow", "poor", "locked")}
    scripts |= {"up": [ledger.script("up") for _ in range(3)], "other": [ledger.script("other")]}
    async with staged_many(scripts, **SECTIONS) as stage:
        began_at = now()
        async with asyncio.TaskGroup() as group:
            for plan in author.plans:
                group.create_task(perform(plan, stage, began_at))
        while stage.gateway.api.open:
            await asyncio.sleep(0)
        await stage.settled()

        expected = Expected()
        for plan in author.plans:
            moved = Plan(**{**plan.__dict__, "start": began_at + plan.start})
            expected.add(moved, ledger.done[plan.number])
        for name, replicas in stage.replicas.items():
            for _ in range(sum(replica.accepted for replica in replicas if replica is not None)):
                expected.observe("connect_seconds", 0.0, upstream=name)
        series = expected.series()
        found = dict(scraped(stage))
        found = {key: value for key, value in found.items() if value or key in series}
        assert sorted(found.keys() ^ series.keys(), key=str) == []
        assert {key: (value, series[key]) for key, value in found.items() if value != _exactly(series[key], *key)} == {}

        lines = {line["request_id"]: line for line in stage.records.lines if line["event"] == "request"}
        told = {name: {field: line[field] for field in expected.lines[name]} for name, line in lines.items()}
        assert told.keys() == expected.lines.keys()
        assert {name: (line, expected.lines[name]) for name, line in told.items() if line != expected.lines[name]} == {}

        # All that was to happen has.
        assert len(lines) == len(author.plans)
        assert {line["end_reason"] for line in lines.values()} >= {reason for _, reason, _, _ in FAILURES.values()}
        assert expected.values("retries", "reason") == {
            reason for ends, (_, reason, status, _) in FAILURES.items() if status >= 429 and ends != "401"
        }
        assert expected.values("retries_refused", "reason") == {"attempts", "budget", "nowhere"}
        assert expected.values("hedges", "served") == {"first", "second"}
        assert expected.values("client_disconnects", "phase") == {"body", "queue", "upstream", "streaming"}
        assert expected.values("sheds", "upstream") == {"small"}


def _exactly(value: float, name: str, _labels: Labels) -> Any:
    """Moments are sixteenths of a second, so all is exact but what is divided by tokens."""
    return pytest.approx(value, rel=1e-12) if name == "gateway_time_per_output_token_seconds_sum" else value
