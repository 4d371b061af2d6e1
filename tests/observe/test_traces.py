"""Spans as they are made: exact under a clock of the test's own, and cheap where nobody wants them."""

import random
from collections.abc import Sequence

import pytest

from gateway.call import Aim, End, Exchange, Usage
from gateway.dialects import DIALECTS
from gateway.dialects.azure import Azure
from gateway.kinds import KINDS
from gateway.observe import semconv
from gateway.observe.traces import CallTrace, Span, Traces
from gateway.outcome import Outcome

SECOND = 1_000_000_000
AIM = Aim("up", "vllm", "served-model", "vllm-0", 8000, "vllm-0:8000")
PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-%b"


class Sent(list[Span]):
    def take(self, spans: Sequence[Span]) -> None:
        self.extend(spans)


def begun(sent: Sent, *, ratio: float = 1.0, parent: bytes = b"", seed: int = 1) -> tuple[Traces, Exchange]:
    traces = Traces(sent.take, ratio, random.Random(seed), lambda: 1000 * SECOND)
    exchange = Exchange("r-1", "chat", 50.0)
    traces.begin(exchange, [(b"traceparent", parent)] if parent else [], "POST", "/v1/chat/completions")
    return traces, exchange


def trace(exchange: Exchange) -> CallTrace:
    assert isinstance(exchange.trace, CallTrace)
    return exchange.trace


def ended(traces: Traces, exchange: Exchange, at: float = 54.0) -> None:
    exchange.ended_at, exchange.status, exchange.outcome, exchange.end_reason = at, 200, Outcome.SERVED, "done"
    traces.finish(exchange)


def test_moments_are_the_clocks_from_the_wall_time_of_the_beginning() -> None:
    sent = Sent()
    traces, exchange = begun(sent)
    exchange.stream = True
    attempt = trace(exchange).attempt(50.5, AIM)
    attempt.ended(53.0, End(51.75, Outcome.SERVED, "done", 200))
    exchange.content_at = 52.0
    ended(traces, exchange)

    first, server = sent
    assert (server.start, server.end) == (1000 * SECOND, 1004 * SECOND)
    assert (first.start, first.end) == (1000 * SECOND + SECOND // 2, 1003 * SECOND)
    assert first.attributes[semconv.TIME_TO_FIRST_CHUNK] == 1.25
    assert server.attributes[semconv.TIME_TO_FIRST_TOKEN] == 2.0


def test_an_attempt_lasts_no_longer_than_its_call() -> None:
    sent = Sent()
    traces, exchange = begun(sent)
    trace(exchange).attempt(50.0, AIM)  # which was never settled
    trace(exchange).attempt(50.0, AIM).ended(60.0, End(50.0, Outcome.SERVED, "done", 200))
    ended(traces, exchange)
    assert [span.end for span in sent] == [1004 * SECOND] * 3


def test_tokens_belong_to_the_attempt_whose_answer_was_passed_on_and_a_guess_to_none() -> None:
    for estimated in (False, True):
        sent = Sent()
        traces, exchange = begun(sent)
        call = trace(exchange)
        loser, winner, failed = (call.attempt(50.0, AIM) for _ in range(3))
        loser.ended(51.0, End(51.0, Outcome.ABANDONED, "caller_left", 200))
        winner.ended(52.0, End(51.0, Outcome.SERVED, "done", 200))
        failed.ended(51.0, End(None, Outcome.FAILED, "upstream_error", 500))
        exchange.usage, exchange.estimated = Usage(7, 5, 3, 2), estimated
        ended(traces, exchange)
        counts = [
            {name: value for name, value in span.attributes.items() if name.startswith("gen_ai.usage")} for span in sent
        ]
        told = {
            "gen_ai.usage.input_tokens": 7,
            "gen_ai.usage.output_tokens": 5,
            "gen_ai.usage.cache_read.input_tokens": 3,
            "gen_ai.usage.reasoning.output_tokens": 2,
        }
        assert counts == [{}, {} if estimated else told, {}, {}]


def test_the_share_that_is_sampled_is_the_ratio_and_the_same_for_the_same_trace() -> None:
    made = [begun(Sent(), ratio=0.25, seed=seed)[1] for seed in range(2000)]
    sampled = [exchange for exchange in made if trace(exchange).context.sampled]
    assert 400 < len(sampled) < 600
    wider = [begun(Sent(), ratio=0.5, seed=seed)[1] for seed in range(2000)]
    known = {trace(exchange).context.trace_id for exchange in wider if trace(exchange).context.sampled}
    assert {trace(exchange).context.trace_id for exchange in sampled} < known


@pytest.mark.parametrize(("flags", "ratio", "spans"), [(b"01", 0.0, 2), (b"00", 1.0, 0)])
def test_who_has_decided_is_followed(flags: bytes, ratio: float, spans: int) -> None:
    sent = Sent()
    traces, exchange = begun(sent, ratio=ratio, parent=PARENT % flags)
    attempt = trace(exchange).attempt(50.0, AIM)
    ended(traces, exchange)
    assert len(sent) == spans
    assert attempt.fields[0][1].endswith(b"-" + flags)


def test_behind_a_pattern_the_callers_word_names_no_span_and_is_cut() -> None:
    sent = Sent()
    traces, exchange = begun(sent)
    exchange.model = "gpt-*"
    trace(exchange).attempt(50.0, AIM._replace(model="gpt-" + "x" * 999))
    ended(traces, exchange)
    assert sent[0].name == "chat gpt-*"
    assert len(str(sent[0].attributes[semconv.REQUEST_MODEL])) == 200


def test_a_replica_that_was_looked_up_is_not_told_and_a_method_that_nobody_knows_neither() -> None:
    sent = Sent()
    traces, exchange = begun(sent)
    traces.begin(exchange, [], "PLANTED", None)
    trace(exchange).attempt(50.0, AIM._replace(replica=""))
    ended(traces, exchange)
    attempt, server = sent
    assert semconv.REPLICA not in attempt.attributes
    assert (server.name, server.attributes[semconv.HTTP_REQUEST_METHOD]) == ("HTTP", "_OTHER")


@pytest.mark.parametrize(
    ("status", "outcome", "failed"),
    [
        (200, Outcome.SERVED, False),
        (200, Outcome.FAILED, True),
        (200, Outcome.TIMED_OUT, True),
        (200, Outcome.ABANDONED, False),
        (400, Outcome.REJECTED, False),
        (429, Outcome.OVERLOADED, False),
        (499, Outcome.ABANDONED, False),
        (502, Outcome.FAILED, True),
        (504, Outcome.ABANDONED, True),
    ],
)
def test_a_request_is_an_error_where_it_is_not_the_callers(status: int, outcome: Outcome, failed: bool) -> None:
    sent = Sent()
    traces, exchange = begun(sent)
    exchange.status, exchange.outcome, exchange.end_reason = status, outcome, "why"
    traces.finish(exchange)
    assert sent[0].failed == failed
    assert sent[0].attributes.get(semconv.ERROR_TYPE) == ("why" if failed else None)


def test_every_kind_is_a_provider_of_its_own_name_unless_the_conventions_know_another() -> None:
    assert {kind: DIALECTS[kind].provider for kind in KINDS} == {kind: kind for kind in KINDS}  # type: ignore[attr-defined]
    assert Azure.provider == "azure.ai.openai"
