"""Tells a call's record to everybody who wants to hear it, once, when the call has ended."""

from structlog.typing import FilteringBoundLogger

from gateway.call import Exchange, Usage
from gateway.observe.metrics import Metrics
from gateway.outcome import Outcome

_LONGEST_NAME = 200  # behind a pattern it is the caller's, who could make a log line of any length
_CHARACTERS_PER_TOKEN = 4  # of English; good enough to be better than nothing, and marked as a guess


class Recorder:
    """`finish` is called once for each Exchange."""

    def __init__(self, metrics: Metrics, logger: FilteringBoundLogger) -> None:
        self._metrics = metrics
        self._logger = logger

    def finish(self, exchange: Exchange) -> None:
        """One line, one set of series."""
        if exchange.usage is None and _worked(exchange):
            _estimate(exchange)
        self._metrics.finish(exchange)
        usage = exchange.usage
        # As one value: structlog makes a new dictionary of its keywords four times over.
        self._logger.info(
            "request",
            fields={
                "request_id": exchange.request_id,
                "key": exchange.key_name,
                "kind": exchange.kind,
                "model": exchange.model,
                "upstream": exchange.upstream,
                "upstream_model": exchange.upstream_model[:_LONGEST_NAME],
                "replica": exchange.replica,
                "attempts": exchange.attempts,
                "retries": [reason for _, reason in exchange.retries],
                "gave_up": exchange.gave_up,
                "stream": exchange.stream,
                "status": exchange.status,
                "outcome": exchange.outcome,
                "prompt_chars": exchange.prompt_chars,
                "input_tokens": None if usage is None else usage.input,
                "output_tokens": None if usage is None else usage.output,
                "usage_estimated": exchange.estimated,
                "ttft_ms": _milliseconds(exchange.time_to_first_token),
                "duration_ms": _milliseconds(exchange.ended_at - exchange.started_at),
                "upstream_ms": _milliseconds(exchange.upstream_seconds),
                "overhead_ms": _milliseconds(exchange.overhead),
                "end_reason": exchange.end_reason,
            },
        )


def _worked(exchange: Exchange) -> bool:
    """Whether an upstream has, or may have, spent tokens on the call."""
    return exchange.attempts > 0 and (exchange.status == 200 or exchange.outcome == Outcome.ABANDONED)


def _estimate(exchange: Exchange) -> None:
    """Usage that nobody reported: the prompt by its length, the output by its events, which hold about a token each."""
    exchange.usage = Usage(input=exchange.prompt_chars // _CHARACTERS_PER_TOKEN, output=exchange.events)
    exchange.estimated = True


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e6) / 1000
