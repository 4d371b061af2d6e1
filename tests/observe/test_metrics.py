"""The series: all announced, none that a caller could make more of, and exact."""

import re

import pytest
from prometheus_client import generate_latest
from prometheus_client.samples import Sample

from gateway.call import Try, Usage, Wait
from gateway.observe.metrics import PHASES, Metrics
from tests.observe.pages import read
from tests.observe.samples import FAILED, OPENAI, SERVED, VLLM, exchange, metrics, refused, used

# Section 4 of the interface, but for what later parts bring.
FAMILIES: dict[str, tuple[str, set[str]]] = {
    "gateway_requests_total": ("counter", {"model", "upstream", "status", "outcome", "stream"}),
    "gateway_request_duration_seconds": ("histogram", {"model", "upstream", "stream"}),
    "gateway_time_to_first_token_seconds": ("histogram", {"model", "upstream"}),
    "gateway_time_per_output_token_seconds": ("histogram", {"model", "upstream"}),
    "gateway_overhead_seconds": ("histogram", {"stream"}),
    "gateway_prefill_seconds": ("histogram", {"model", "upstream"}),
    "gateway_stream_gap_seconds": ("histogram", {"model", "upstream"}),
    "gateway_queue_wait_seconds": ("histogram", {"upstream"}),
    "gateway_pool_wait_seconds": ("histogram", {"upstream"}),
    "gateway_connect_seconds": ("histogram", {"upstream"}),
    "gateway_prompt_tokens": ("histogram", {"model", "upstream"}),
    "gateway_completion_tokens": ("histogram", {"model", "upstream"}),
    "gateway_event_loop_lag_seconds": ("histogram", set()),
    "gateway_tokens_total": ("counter", {"model", "upstream", "type", "source"}),
    "gateway_upstream_attempts_total": ("counter", {"upstream", "replica", "outcome"}),
    "gateway_retries_total": ("counter", {"upstream", "reason"}),
    "gateway_retries_refused_total": ("counter", {"upstream", "reason"}),
    "gateway_hedges_total": ("counter", {"model", "served"}),
    "gateway_sheds_total": ("counter", {"upstream"}),
    "gateway_upstream_inflight": ("gauge", {"upstream", "replica"}),
    "gateway_upstream_state": ("gauge", {"upstream", "replica", "state"}),
    "gateway_upstream_queued": ("gauge", {"upstream"}),
    "gateway_upstream_retry_budget": ("gauge", {"upstream"}),
    "gateway_upstream_panic": ("gauge", {"upstream"}),
    "gateway_upstream_key_refused": ("gauge", {"upstream"}),
    "gateway_upstream_out_of_quota": ("gauge", {"upstream"}),
    "gateway_upstream_latency_seconds": ("gauge", {"upstream", "replica"}),
    "gateway_upstream_engine_batch_size": ("gauge", {"upstream", "replica"}),
    "gateway_upstream_engine_running": ("gauge", {"upstream", "replica"}),
    "gateway_upstream_engine_waiting": ("gauge", {"upstream", "replica"}),
    "gateway_upstream_engine_kv_usage": ("gauge", {"upstream", "replica"}),
    "gateway_stream_ends_total": ("counter", {"model", "upstream", "reason"}),
    "gateway_client_disconnects_total": ("counter", {"phase"}),
    "gateway_inflight_requests": ("gauge", set()),
    "gateway_build_info": ("gauge", {"version"}),
    "gateway_refused_heads_total": ("counter", {"status"}),
    "gateway_log_lines_dropped": ("gauge", set()),
    "process_cpu_seconds_total": ("counter", set()),
    "process_open_fds": ("gauge", set()),
    "process_max_fds": ("gauge", set()),
    "process_resident_memory_bytes": ("gauge", set()),
    "process_virtual_memory_bytes": ("gauge", set()),
    "process_start_time_seconds": ("gauge", set()),
}


SEEN = {"model": "chat", "status": "200", "outcome": "served", "stream": "true"}


def samples(made: Metrics, name: str = "") -> list[Sample]:
    return [sample for family in made.registry.collect() for sample in family.samples if sample.name.startswith(name)]


def value(made: Metrics, name: str, **labels: str) -> float | None:
    return made.registry.get_sample_value(name, labels)


def page(made: Metrics) -> str:
    return generate_latest(made.registry).decode()


def test_every_family_is_announced_before_any_call() -> None:
    text = page(metrics())
    assert dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)) == {
        name: kind for name, (kind, _) in FAMILIES.items()
    }
    assert {name for name, _ in re.findall(r"^# HELP (\S+) (\S.*)$", text, re.MULTILINE)} == set(FAMILIES)


def test_labels_are_those_that_are_promised_and_no_family_tells_when_it_was_made() -> None:
    found: dict[str, set[str]] = {}
    for sample in samples(used()):
        found.setdefault(re.sub(r"_(bucket|count|sum)$", "", sample.name), set()).update(set(sample.labels) - {"le"})
    assert found == {name: labels for name, (_, labels) in FAMILIES.items()}
    assert "_created" not in page(used())


def test_what_is_there_before_any_call_is_told_at_once() -> None:
    made = metrics(VLLM)
    assert value(made, "gateway_inflight_requests") == 7
    assert value(made, "gateway_log_lines_dropped") == 3
    assert value(made, "gateway_upstream_inflight", upstream="vllm", replica="vllm-0:8000") == 2
    assert value(made, "gateway_upstream_inflight", upstream="vllm", replica="vllm-1:8000") == 0
    assert value(made, "gateway_upstream_state", upstream="vllm", replica="vllm-1:8000", state="ejected") == 1
    assert value(made, "gateway_upstream_queued", upstream="vllm") == 3
    assert value(made, "gateway_upstream_retry_budget", upstream="vllm") == 12
    assert [value(made, "gateway_client_disconnects_total", phase=phase) for phase in PHASES] == [0] * 5


def test_a_stream_is_counted_exactly() -> None:
    made = metrics(VLLM)
    made.finish(exchange())
    made.finish(exchange())
    where = {"model": "chat", "upstream": "vllm"}
    assert value(made, "gateway_requests_total", **where, status="200", outcome="served", stream="true") == 2
    assert value(made, "gateway_request_duration_seconds_sum", **where, stream="true") == pytest.approx(2.6)
    assert value(made, "gateway_request_duration_seconds_bucket", **where, stream="true", le="1.0") == 0
    assert value(made, "gateway_request_duration_seconds_bucket", **where, stream="true", le="2.5") == 2
    assert value(made, "gateway_time_to_first_token_seconds_sum", **where) == pytest.approx(0.6)
    assert value(made, "gateway_time_per_output_token_seconds_sum", **where) == pytest.approx(0.04)
    assert value(made, "gateway_time_per_output_token_seconds_count", **where) == 2
    assert value(made, "gateway_overhead_seconds_sum", stream="true") == pytest.approx(0.004)
    assert value(made, "gateway_prefill_seconds_sum", **where) == pytest.approx(2 * (10.3 - 10.001))
    assert value(made, "gateway_stream_gap_seconds_sum", **where) == 0.25
    assert value(made, "gateway_prompt_tokens_sum", **where) == 200
    assert value(made, "gateway_prompt_tokens_bucket", **where, le="64.0") == 0
    assert value(made, "gateway_prompt_tokens_bucket", **where, le="256.0") == 2
    assert value(made, "gateway_completion_tokens_sum", **where) == 100
    tokens = {
        type_: value(made, "gateway_tokens_total", **where, type=type_, source="reported")
        for type_ in ("input", "output", "cached", "reasoning")
    }
    assert tokens == {"input": 200, "output": 100, "cached": 80, "reasoning": 40}
    assert value(made, "gateway_upstream_attempts_total", upstream="vllm", replica="vllm-0:8000", outcome="served") == 2
    assert value(made, "gateway_stream_ends_total", **where, reason="done") == 2


def test_a_plain_reply_has_no_token_times_and_no_end_of_a_stream() -> None:
    made = metrics()
    made.finish(exchange(stream=False, phase="upstream", content_at=None, last_event_at=None))
    where = {"model": "chat", "upstream": "vllm"}
    assert value(made, "gateway_requests_total", **where, status="200", outcome="served", stream="false") == 1
    assert value(made, "gateway_overhead_seconds_count", stream="false") == 1
    assert samples(made, "gateway_time") == []
    assert samples(made, "gateway_stream_ends") == samples(made, "gateway_stream_gap") == []
    assert samples(made, "gateway_prefill") == []


def test_a_stream_made_of_a_whole_reply_has_a_first_token_and_says_nothing_of_the_engines_pace() -> None:
    made = metrics()
    made.finish(exchange(last_event_at=None, events=0))
    where = {"model": "chat", "upstream": "vllm"}
    assert value(made, "gateway_time_to_first_token_seconds_sum", **where) == pytest.approx(0.3)
    assert value(made, "gateway_stream_ends_total", **where, reason="done") == 1
    for family in ("prefill", "stream_gap", "time_per_output_token"):
        assert samples(made, f"gateway_{family}") == []


def test_guessed_tokens_are_told_from_those_that_were_reported() -> None:
    made = metrics()
    made.finish(exchange())
    made.finish(exchange(usage=Usage(7, 3), estimated=True))
    where = {"model": "chat", "upstream": "vllm"}
    assert counted(made, "tokens_total") == {
        ("chat", "vllm", "input", "reported"): 100,
        ("chat", "vllm", "output", "reported"): 50,
        ("chat", "vllm", "cached", "reported"): 40,
        ("chat", "vllm", "reasoning", "reported"): 20,
        ("chat", "vllm", "input", "estimated"): 7,
        ("chat", "vllm", "output", "estimated"): 3,
    }
    assert value(made, "gateway_prompt_tokens_sum", **where) == 107


def test_embeddings_have_a_prompt_and_no_answer() -> None:
    made = metrics()
    made.finish(exchange(kind="embeddings", stream=False, phase="upstream", usage=Usage(100, 0)))
    assert value(made, "gateway_prompt_tokens_count", model="chat", upstream="vllm") == 1
    assert samples(made, "gateway_completion_tokens") == []


def test_what_was_waited_for_is_counted_where_it_was_even_if_nothing_came_of_it() -> None:
    made = metrics(VLLM, OPENAI)
    waits = (Wait("queue", "vllm", 1.0), Wait("pool", "openai", 0.25), Wait("connect", "openai", 0.125))
    made.finish(exchange(waits=waits))
    made.finish(refused(upstream="vllm", status=503, end_reason="overloaded", waits=waits[:1]))
    assert value(made, "gateway_queue_wait_seconds_sum", upstream="vllm") == 2.0
    assert value(made, "gateway_pool_wait_seconds_sum", upstream="openai") == 0.25
    assert value(made, "gateway_connect_seconds_sum", upstream="openai") == 0.125
    assert {sample.labels["upstream"] for sample in samples(made, "gateway_pool_wait")} == {"openai"}


async def test_the_page_says_what_the_registry_says() -> None:
    made = used()
    registry = [one for one in read(page(made)) if not one[0].startswith("process_")]
    served = [one for one in read((await made.page()).decode()) if not one[0].startswith("process_")]
    assert sorted(served, key=str) == sorted(registry, key=str)


@pytest.mark.parametrize("name", ["request_duration", "time_to_first_token", "prefill"])
def test_what_takes_ten_minutes_is_still_told_from_what_takes_longer(name: str) -> None:
    bounds = {sample.labels["le"] for sample in samples(used(), f"gateway_{name}_seconds_bucket")}
    assert {"0.01", "1.0", "60.0", "600.0", "+Inf"} <= bounds


def test_a_single_token_has_no_time_per_token() -> None:
    made = used()
    before = samples(made, "gateway_time_per_output_token")
    for output in (0, 1):
        made.finish(exchange(usage=Usage(1, output)))
    assert samples(made, "gateway_time_per_output_token") == before


def test_a_refused_request_counts_as_a_request_and_no_more() -> None:
    made = metrics()
    before = {sample.name for sample in samples(made) if sample.value}
    made.finish(refused())
    where = {"model": "unknown", "upstream": ""}
    assert value(made, "gateway_requests_total", **where, status="404", outcome="rejected", stream="false") == 1
    counted = {sample.name for sample in samples(made) if sample.value} - before
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in counted} == {
        "gateway_requests_total",
        "gateway_request_duration_seconds",
    }


def test_a_request_off_the_api_is_not_counted() -> None:
    made = metrics()
    made.finish(refused(kind="unknown"))
    assert samples(made, "gateway_requests") == []


@pytest.mark.parametrize("phase", PHASES)
def test_a_caller_that_left_is_counted_by_when_it_left(phase: str) -> None:
    made = metrics()
    made.finish(exchange(end_reason="caller_left", outcome="abandoned", phase=phase, attempts=int(phase != "body")))
    assert {each: value(made, "gateway_client_disconnects_total", phase=each) for each in PHASES} == {
        each: float(each == phase) for each in PHASES
    }


def test_a_caller_whose_own_deadline_passed_has_not_left() -> None:
    made = metrics()
    made.finish(exchange(end_reason="deadline_exceeded", outcome="abandoned", status=504, phase="upstream"))
    assert [value(made, "gateway_client_disconnects_total", phase=phase) for phase in PHASES] == [0] * 5


# Attempts.


def attempts(made: Metrics) -> dict[tuple[str, str, str], float]:
    return {
        (sample.labels["upstream"], sample.labels["replica"], sample.labels["outcome"]): sample.value
        for sample in samples(made, "gateway_upstream_attempts")
    }


def counted(made: Metrics, name: str) -> dict[tuple[str, ...], float]:
    return {tuple(sample.labels.values()): sample.value for sample in samples(made, f"gateway_{name}")}


def test_each_attempt_is_counted_where_it_was_made_and_each_retry_where_it_was_needed() -> None:
    made = metrics(VLLM, OPENAI)
    tries = (FAILED, SERVED._replace(outcome="timed_out"), Try("openai", "api.openai.com", "served"))
    retries = (("vllm", "upstream_reset"), ("vllm", "upstream_timeout"))
    made.finish(exchange(upstream="openai", attempts=3, tries=tries, retries=retries))
    assert attempts(made) == dict.fromkeys(tries, 1)
    assert counted(made, "retries_total") == {("vllm", "upstream_reset"): 1, ("vllm", "upstream_timeout"): 1}
    assert counted(made, "retries_refused") == {}
    assert value(made, "gateway_requests_total", **SEEN, upstream="openai") == 1


def test_an_attempt_that_served_was_served_whatever_became_of_its_call() -> None:
    made = metrics(VLLM)
    made.finish(exchange(outcome="abandoned", end_reason="caller_left"))
    assert attempts(made) == {SERVED: 1}


@pytest.mark.parametrize("reason", ["attempts", "nowhere", "retry_after", "deadline", "budget"])
def test_a_call_that_was_given_up_says_what_forbade_another_attempt(reason: str) -> None:
    made = metrics(VLLM)
    made.finish(exchange(tries=(FAILED,), gave_up=reason, outcome="failed", end_reason="upstream_reset"))
    assert counted(made, "retries_refused") == {("vllm", reason): 1}
    assert counted(made, "retries_total") == {}


@pytest.mark.parametrize("served", ["first", "second", "neither"])
def test_a_hedge_is_counted_by_which_of_the_two_was_served(served: str) -> None:
    made = metrics(VLLM)
    made.finish(exchange(attempts=2, tries=(FAILED, SERVED), hedge=served))
    assert counted(made, "hedges") == {("chat", served): 1}


def test_a_call_that_found_no_place_is_counted_at_the_upstream_that_had_none_and_as_no_attempt() -> None:
    made = metrics(VLLM)
    made.finish(refused(upstream="vllm", status=503, outcome="overloaded", end_reason="overloaded"))
    assert counted(made, "sheds") == {("vllm",): 1}
    assert attempts(made) == {}


def test_the_attempts_at_a_replica_that_has_gone_go_with_it() -> None:
    upstreams = [VLLM]
    made = Metrics(lambda: 0, lambda: upstreams, lambda: 0)
    made.finish(exchange(attempts=2, tries=(FAILED, SERVED)))
    assert attempts(made) == {FAILED: 1, SERVED: 1}
    upstreams[0] = VLLM._replace(replicas=VLLM.replicas[:1])
    samples(made)  # a last time
    assert attempts(made) == {SERVED: 1}
    made.finish(exchange())
    assert attempts(made) == {SERVED: 2}


def test_a_refused_head_is_counted_by_its_status() -> None:
    made = metrics()
    made.refused(431)
    made.refused(431)
    assert value(made, "gateway_refused_heads_total", status="431") == 2


def test_two_gateways_in_one_process_do_not_count_each_others_calls() -> None:
    one, other = metrics(), metrics()
    one.finish(exchange())
    assert samples(other, "gateway_requests") == []
