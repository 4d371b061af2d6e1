"""What metrics and log must say of calls, by what the upstreams did to them: worked out anew, and not as the gateway does.

The timeouts, the hedge's delay and the waits for places are those of the stage in test_truth.py.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from itertools import pairwise
from math import inf
from typing import Any, NamedTuple

from gateway.call import Usage
from tests.truth.play import Done, Plan

SILENCE = 4.0  # seconds: first_token, reply and idle alike
HEDGE_AFTER = 1.0
QUEUE_WAIT = 1.0

# Of an attempt that ends so: its outcome, the reason, the status that the caller sees, and whether it may be tried again.
FAILURES: dict[str, tuple[str, str, int, bool]] = {
    "500": ("failed", "upstream_error", 502, True),
    "503": ("failed", "upstream_unavailable", 503, True),
    "429": ("overloaded", "rate_limit_exceeded", 429, True),
    "400": ("rejected", "upstream_rejected", 400, False),
    "401": ("unauthorised", "upstream_auth", 502, True),
    "reset": ("failed", "upstream_reset", 502, True),
    "stalled": ("timed_out", "upstream_first_byte_timeout", 504, True),
    "truncated": ("failed", "upstream_truncated", 502, True),
    "early_cut": ("failed", "upstream_stream_interrupted", 502, True),
    "cut": ("failed", "upstream_stream_interrupted", 200, False),
    "silent": ("timed_out", "upstream_idle_timeout", 200, False),
    "error_event": ("failed", "upstream_error", 200, False),
}
FAULTS = {
    "model": (404, "model_not_found"),
    "key": (401, "invalid_api_key"),
    "json": (400, "invalid_json"),
    "method": (405, "method_not_allowed"),
}
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
WAITS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BOUNDS: dict[str, tuple[float, ...]] = {
    "request_duration_seconds": SECONDS,
    "time_to_first_token_seconds": SECONDS,
    "prefill_seconds": SECONDS,
    "time_per_output_token_seconds": (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
    "stream_gap_seconds": (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
    "overhead_seconds": (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1),
    "queue_wait_seconds": WAITS,
    "pool_wait_seconds": WAITS,
    "connect_seconds": WAITS,
    "prompt_tokens": (16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576),
    "completion_tokens": (16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576),
}

Labels = frozenset[tuple[str, str]]


class Verdict(NamedTuple):
    """What came of a call."""

    status: int
    outcome: str
    reason: str
    ended_at: float
    phase: str  # in which its caller left


class Expected:
    """Series by name and labels, and what the log's lines say by request id."""

    def __init__(self) -> None:
        self.counters: Counter[tuple[str, Labels]] = Counter()
        self.samples: defaultdict[tuple[str, Labels], list[float]] = defaultdict(list)
        self.lines: dict[str, dict[str, Any]] = {}

    def count(self, name: str, amount: float = 1, /, **labels: str) -> None:
        if amount:
            self.counters[f"gateway_{name}_total", frozenset(labels.items())] += amount  # type: ignore[assignment]

    def observe(self, name: str, sample: float, /, **labels: str) -> None:
        self.samples[name, frozenset(labels.items())].append(sample)

    def series(self) -> dict[tuple[str, Labels], float]:
        """All of them, as they are scraped."""
        found: dict[tuple[str, Labels], float] = dict(self.counters)
        for (name, labels), samples in self.samples.items():
            bounds = BOUNDS[name]
            counts = Counter(bisect_left(bounds, sample) for sample in samples)
            total = 0
            for number, bound in enumerate((*map(float, bounds), inf)):
                total += counts[number]
                found[f"gateway_{name}_bucket", labels | {("le", str(bound))}] = total
            found[f"gateway_{name}_count", labels] = len(samples)
            found[f"gateway_{name}_sum", labels] = sum(samples)
        return found

    def values(self, name: str, label: str) -> set[str]:
        """What a label of a counter has been."""
        return {dict(labels)[label] for family, labels in self.counters if family == f"gateway_{name}_total"}

    # One call.

    def add(self, plan: Plan, done: list[Done]) -> None:
        """What must be told of a call with this plan, to whose attempts the upstreams did this."""
        verdict = _verdict(plan, done)
        last = _served_by(plan, done)
        upstream = plan.model.partition("-")[0] if plan.shed or (plan.waits and not done) else ""
        upstream = last.upstream if last is not None else upstream
        stream = "true" if plan.stream else "false"
        model = plan.route if not plan.fault else "unknown"
        where = {"model": model, "upstream": upstream}
        self.count("requests", **where, status=str(verdict.status), outcome=verdict.outcome, stream=stream)
        self.observe("request_duration_seconds", verdict.ended_at - plan.start, **where, stream=stream)
        if verdict.reason == "caller_left":
            self.count("client_disconnects", phase=verdict.phase)
        if plan.shed:
            self.count("sheds", upstream=upstream)
        for what, seconds in plan.waits:
            self.observe(f"{what}_wait_seconds", seconds, upstream=upstream)
        line: dict[str, Any] = {
            "model": model,
            "upstream": upstream,
            "status": verdict.status,
            "outcome": verdict.outcome,
            "end_reason": verdict.reason,
            "attempts": len(done),
            "stream": stream == "true",
            "duration_ms": (verdict.ended_at - plan.start) * 1000,
            "ttft_ms": None,
            "retries": [],
            "input_tokens": None,
            "output_tokens": None,
            "usage_estimated": False,
            "replica": "" if last is None else last.replica,
            "upstream_ms": 0.0,
            "overhead_ms": None,
        }
        if plan.shed or plan.fault in ("model", "json"):  # it was read, and answered
            line["overhead_ms"] = sum(seconds for _, seconds in plan.waits) * 1000
        if last is not None:
            self._tried(plan, done, last, verdict, line, where)
        self.lines[plan.request_id] = line

    def _tried(
        self, plan: Plan, done: list[Done], last: Done, verdict: Verdict, line: dict[str, Any], where: dict[str, str]
    ) -> None:
        stream = "true" if plan.stream else "false"
        for one in done:
            outcome = _outcome(plan, one, last, verdict)
            self.count("upstream_attempts", upstream=one.upstream, replica=one.replica, outcome=outcome)
        if plan.hedged:
            if len(done) > 1:
                self.count("hedges", model=where["model"], served="first" if last is done[0] else "second")
        else:
            for one in done[:-1]:
                self.count("retries", upstream=one.upstream, reason=FAILURES[one.deed.ends][1])
                line["retries"].append(FAILURES[one.deed.ends][1])
        if verdict.status not in (200, 499) and last.deed.ends in FAILURES and FAILURES[last.deed.ends][3]:
            why = {"poor": "budget", "locked": "nowhere"}.get(last.upstream, "attempts")
            self.count("retries_refused", upstream=last.upstream, reason=why)
        begun = plan.stream and verdict.status == 200
        queued = sum(seconds for what, seconds in plan.waits if what == "queue")
        if verdict.status != 499:
            self.observe("overhead_seconds", queued, stream=stream)
            line["overhead_ms"] = queued * 1000
        events = [(at, content) for at, content in last.events if at <= verdict.ended_at]
        self._tokens(plan, last, verdict, len(events) if begun else 0, line, where)
        until = next(at for at, content in events if content) if begun else verdict.ended_at
        line["upstream_ms"] = (until - plan.start - queued) * 1000
        if begun:
            self._stream(plan, last, verdict, events, line, where)

    def _tokens(
        self, plan: Plan, last: Done, verdict: Verdict, events: int, line: dict[str, Any], where: dict[str, str]
    ) -> None:
        usage = last.deed.usage if verdict.reason == "done" else None
        source = "reported"
        if usage is None:
            if verdict.status != 200 and verdict.outcome != "abandoned":
                return
            usage, source = Usage(plan.prompt // 4, events), "estimated"
        self.observe("prompt_tokens", usage.input, **where)
        if plan.kind != "embeddings":
            self.observe("completion_tokens", usage.output, **where)
        for type_ in ("input", "output", "cached", "reasoning"):
            self.count("tokens", getattr(usage, type_), **where, type=type_, source=source)
        line |= {"input_tokens": usage.input, "output_tokens": usage.output, "usage_estimated": source == "estimated"}

    def _stream(
        self,
        plan: Plan,
        last: Done,
        verdict: Verdict,
        events: list[tuple[float, bool]],
        line: dict[str, Any],
        where: dict[str, str],
    ) -> None:
        self.count("stream_ends", **where, reason=verdict.reason)
        content_at = next(at for at, content in events if content)
        told = [max(at, content_at) for at, _ in events]  # nothing is passed on before there is content
        self.observe("stream_gap_seconds", max(b - a for a, b in pairwise(told)), **where)
        self.observe("time_to_first_token_seconds", content_at - plan.start, **where)
        self.observe("prefill_seconds", content_at - last.received_at, **where)
        line["ttft_ms"] = (content_at - plan.start) * 1000
        if (output := line["output_tokens"]) > 1:
            self.observe("time_per_output_token_seconds", (told[-1] - content_at) / (output - 1), **where)


def _served_by(plan: Plan, done: list[Done]) -> Done | None:
    """The attempt that the call's record tells of."""
    if plan.hedged and len(done) > 1:
        return min(done, key=lambda one: one.received_at + one.deed.think + sum(one.deed.pauses[:1]))
    return done[-1] if done else None


def _outcome(plan: Plan, one: Done, last: Done, verdict: Verdict) -> str:
    if plan.hedged and one is not last:
        return "abandoned"
    if one is last and verdict.outcome == "abandoned":
        return "abandoned"
    return "served" if one.deed.ends == "served" else FAILURES[one.deed.ends][0]


def _verdict(plan: Plan, done: list[Done]) -> Verdict:
    last = _served_by(plan, done)
    if plan.leaves is not None:
        left_at = plan.start + plan.leaves
        begun = last is not None and any(content and at < left_at for at, content in last.events)
        phase = "body" if plan.fault == "body" else "streaming" if begun else "queue" if last is None else "upstream"
        return Verdict(200 if begun else 499, "abandoned", "caller_left", left_at, phase)
    if plan.fault:
        status, reason = FAULTS[plan.fault]
        return Verdict(status, "rejected", reason, plan.start, "")
    if plan.shed:
        return Verdict(503, "overloaded", "overloaded", plan.start + sum(seconds for _, seconds in plan.waits), "")
    assert last is not None, plan
    if plan.deadline is not None:
        return Verdict(504, "abandoned", "deadline_exceeded", plan.start + plan.deadline, "")
    if last.deed.ends == "served":
        end = last.received_at + last.deed.think + sum(last.deed.pauses if plan.stream else ())
        return Verdict(200, "served", "done", end, "")
    outcome, reason, status, _ = FAILURES[last.deed.ends]
    return Verdict(status, outcome, reason, _failed_at(last), "")


def _failed_at(last: Done) -> float:
    if last.deed.ends == "stalled":
        return last.received_at + SILENCE
    if last.deed.ends == "silent":
        return last.events[-1][0] + SILENCE
    return last.ended_at
