"""The metrics of a gateway with a large config, of which everything has been used: as many series as there will be."""

from gateway.call import Exchange, Try, Usage, Wait
from gateway.observe.metrics import Metrics
from gateway.observe.upstreams import EngineReading, ReplicaReading, UpstreamReading

MODELS, UPSTREAMS, REPLICAS = 25, 10, 4
TARGETS = 2  # of each model
# How calls end: status, outcome, reason; a stream that has begun has sent 200.
ENDS = [
    (200, "served", "done"),
    (400, "rejected", "upstream_rejected"),
    (429, "overloaded", "rate_limit_exceeded"),
    (499, "abandoned", "caller_left"),
    (502, "failed", "upstream_reset"),
    (503, "overloaded", "overloaded"),
    (504, "timed_out", "upstream_timeout"),
]
BROKEN = ["done", "caller_left", "upstream_idle_timeout", "upstream_stream_interrupted"]


def large() -> Metrics:
    """Each model at each of its upstreams, each replica, each way to end that is at all likely."""
    readings = [
        UpstreamReading(
            f"upstream-{number}",
            [
                ReplicaReading(_replica(number, one), "available", 3, EngineReading(3, 1, 0.5, 4), 0.1)
                for one in range(REPLICAS)
            ],
            queued=1,
            budget=10.0,
            panics=False,
            key_refused=False,
        )
        for number in range(UPSTREAMS)
    ]
    made = Metrics(lambda: 7, lambda: readings, lambda: 3)
    made.loop_lag.observe((), 0.001)
    for model in range(MODELS):
        for target in range(TARGETS):
            _use(made, f"model-{model}", (model + target) % UPSTREAMS)
    for _, outcome, reason in ENDS:
        made.finish(_call("unknown", "", outcome, reason))
    return made


def _replica(upstream: int, number: int) -> str:
    return f"vllm-{number}.upstream-{upstream}.models.svc.cluster.local:8000"


def _use(made: Metrics, model: str, number: int) -> None:
    upstream = f"upstream-{number}"
    for status, outcome, reason in ENDS:
        record = _call(model, upstream, outcome, reason, status=status)
        record.tries = tuple(Try(upstream, _replica(number, one), outcome) for one in range(REPLICAS))
        record.retries = ((upstream, reason),)
        record.gave_up = "budget"
        record.waits = (Wait("queue", upstream, 0.1), Wait("pool", upstream, 0.1), Wait("connect", upstream, 0.1))
        made.finish(record)
    for reason in BROKEN:
        for estimated in (False, True):
            record = _call(model, upstream, "failed" if reason != "done" else "served", reason)
            record.stream, record.phase, record.estimated = True, "streaming", estimated
            record.content_at = record.sent_at = record.last_event_at = 1.0
            record.events = 3
            made.finish(record)


def _call(model: str, upstream: str, outcome: str, reason: str, *, status: int = 200) -> Exchange:
    record = Exchange("0123456789abcdef", "chat", 0.0)
    record.model, record.upstream, record.status = model, upstream, status
    record.outcome, record.end_reason = outcome, reason
    record.attempts = int(bool(upstream))
    record.received_at = record.relayed_at = 0.0
    record.usage = Usage(100, 50, 10, 10)
    return record
