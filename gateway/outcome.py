"""One table: what happened at an upstream -> what it means -> what is made of it.

Everything that can go wrong there is turned into one GatewayError here (which is what the caller is told), every
GatewayError (or its absence) into one Outcome, which metrics and log tell of, and every Outcome into one Reaction, which
retry, breaker and balance go by. Pure: no I/O, no clock, no logger. Exceptions are judged by httpx's classes and by the
phase they came in, so that any transport under httpx is judged alike.
"""

import email.utils
import math
import socket
import ssl
from collections.abc import Callable, Mapping
from enum import Enum, IntEnum, StrEnum
from typing import Literal, NamedTuple

import httpx

from gateway import errors

_LONGEST_WAIT = 86_400.0
LONGEST_COOLING = (
    120.0  # seconds; what an upstream may keep us away for by a header, while callers are told what it said
)

Phase = Literal["head", "first_event", "body", "stream"]
"""What was awaited: an answer's head; a stream's first event (with its head); a body; more of a stream."""


class Outcome(StrEnum):
    """What came of a call or an attempt."""

    SERVED = "served"
    OVERLOADED = "overloaded"  # 429, or 503 with a time to come back
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    REJECTED = "rejected"  # the caller's fault: it will be wrong again
    UNAUTHORISED = "unauthorised"  # our key is bad, or our account is dry
    ABANDONED = "abandoned"  # the caller left, or would wait no longer: nobody's fault


_OUTCOMES: tuple[tuple[type[errors.GatewayError], Outcome], ...] = (
    (errors.CallerLeft, Outcome.ABANDONED),
    (errors.DeadlinePassed, Outcome.ABANDONED),
    (errors.CallerError, Outcome.REJECTED),
    (errors.UpstreamRejected, Outcome.REJECTED),
    (errors.UpstreamUnauthorized, Outcome.UNAUTHORISED),
    (errors.UpstreamQuota, Outcome.UNAUTHORISED),
    (errors.UpstreamThrottled, Outcome.OVERLOADED),
    (errors.Unavailable, Outcome.OVERLOADED),
    (errors.UpstreamTimeout, Outcome.TIMED_OUT),
    (errors.GatewayError, Outcome.FAILED),
)


def judge(error: errors.GatewayError | None) -> Outcome:
    """What came of it."""
    if error is None:
        return Outcome.SERVED
    return next(outcome for class_, outcome in _OUTCOMES if isinstance(error, class_))


def end_reason(error: errors.GatewayError | None) -> str:
    """How it ended, from a closed list: `done`, or the code of our own error. An upstream's codes are as many as it likes."""
    if error is None:
        return "done"
    return "upstream_rejected" if isinstance(error, errors.UpstreamRejected) else str(error.code)


class Again(IntEnum):
    """Where the same call may be tried again, before anything of it has been answered."""

    NEVER = 0
    OTHER_UPSTREAM = 1  # another key
    ELSEWHERE = 2  # another replica
    ANYWHERE = 3  # the same one too, after a wait


class Verdict(Enum):
    """What a breaker counts."""

    SERVED = 1
    FAILED = 2
    NONE = 3


class Reaction(NamedTuple):
    """What an outcome does: to the call, to the breaker of the replica, to that of the upstream's key, to balancing."""

    again: Again
    replica: Verdict = Verdict.NONE
    key: Verdict = Verdict.NONE
    cools: bool = False  # the replica is left alone for a time, for the model that was asked for


REACTIONS: dict[Outcome, Reaction] = {
    Outcome.SERVED: Reaction(Again.NEVER, Verdict.SERVED, Verdict.SERVED),
    Outcome.OVERLOADED: Reaction(Again.ANYWHERE, cools=True),
    Outcome.FAILED: Reaction(Again.ANYWHERE, Verdict.FAILED),
    Outcome.TIMED_OUT: Reaction(Again.ANYWHERE, Verdict.FAILED),
    Outcome.REJECTED: Reaction(Again.NEVER),
    Outcome.UNAUTHORISED: Reaction(Again.OTHER_UPSTREAM, key=Verdict.FAILED),
    Outcome.ABANDONED: Reaction(Again.NEVER),
}
# Where we ourselves are the bottleneck no replica is to blame, and waiting again would be a second queue.
_POOL_EXHAUSTED = Reaction(Again.ELSEWHERE)
_OURS = Reaction(Again.NEVER)
_NOT_THERE = Reaction(Again.OTHER_UPSTREAM)
# It would be the same again at the same place.
_AGAIN = {
    "upstream_tls": Again.ELSEWHERE,
    "upstream_redirect": Again.ELSEWHERE,
    "upstream_bad_content_type": Again.ELSEWHERE,
    "upstream_bad_encoding": Again.ELSEWHERE,
}
# Bounds of ours, which say nothing about the replica; what is too large is so everywhere.
_BOUNDS = frozenset({"upstream_response_too_large", "upstream_event_too_large", "upstream_stream_timeout"})


def reaction(error: errors.GatewayError | None) -> Reaction:
    """What is made of it."""
    if isinstance(error, errors.Unavailable):
        return _POOL_EXHAUSTED if isinstance(error, errors.PoolExhausted) else _OURS
    if isinstance(error, errors.Unsupported):
        return _NOT_THERE
    usual = REACTIONS[judge(error)]
    if error is None or usual.again is Again.NEVER:
        return usual
    if error.code in _BOUNDS:
        return _OURS
    return usual._replace(again=_AGAIN.get(error.code or "", usual.again))


# An exception of the transport.


def _connect(exception: httpx.HTTPError, _phase: Phase) -> errors.GatewayError:
    cause: BaseException | None = exception
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return errors.UpstreamUnreachable("The upstream's name could not be resolved.", code="upstream_dns")
        if isinstance(cause, ssl.SSLError):
            return errors.UpstreamUnreachable(
                "No secure connection to the upstream could be made.", code="upstream_tls"
            )
        cause = cause.__cause__ or cause.__context__
    return errors.UpstreamUnreachable("The upstream could not be reached.")


def _read_timeout(_exception: httpx.HTTPError, phase: Phase) -> errors.GatewayError:
    if phase in ("head", "first_event"):
        return errors.UpstreamTimeout("The upstream did not answer in time.", code="upstream_first_byte_timeout")
    return errors.UpstreamTimeout("The upstream fell silent.", code="upstream_idle_timeout")


def _deadline(exception: httpx.HTTPError, phase: Phase) -> errors.GatewayError:
    if phase == "first_event":
        return _read_timeout(exception, phase)
    if phase == "stream":
        return errors.UpstreamTimeout("The stream took too long.", code="upstream_stream_timeout")
    return errors.UpstreamTimeout("The call took too long.")


def _broken(_exception: httpx.HTTPError, phase: Phase) -> errors.GatewayError:
    if phase == "stream":
        return errors.UpstreamBroken("The upstream cut the stream.", code="upstream_stream_interrupted")
    if phase == "body":
        return errors.UpstreamBroken("The upstream's answer was cut short.", code="upstream_truncated")
    return errors.UpstreamBroken("The upstream dropped the connection.", code="upstream_reset")


def _protocol(exception: httpx.HTTPError, phase: Phase) -> errors.GatewayError:
    if phase in ("body", "stream"):
        return _broken(exception, phase)
    # httpx has one class for nonsense and for a connection that ends without a word
    return errors.UpstreamBroken("The upstream sent no valid answer.")


_Rule = Callable[[httpx.HTTPError, Phase], errors.GatewayError]
_EXCEPTIONS: tuple[tuple[type[httpx.HTTPError], _Rule], ...] = (
    (httpx.PoolTimeout, lambda *_: errors.PoolExhausted("Every connection to the upstream is busy.")),
    (
        httpx.ConnectTimeout,
        lambda *_: errors.UpstreamTimeout("No connection in time.", code="upstream_connect_timeout"),
    ),
    (
        httpx.WriteTimeout,
        lambda *_: errors.UpstreamTimeout("The upstream took the request too slowly.", code="upstream_write_timeout"),
    ),
    (httpx.ReadTimeout, _read_timeout),
    (httpx.TimeoutException, _deadline),
    (httpx.ConnectError, _connect),
    (httpx.RemoteProtocolError, _protocol),
    (httpx.HTTPError, _broken),
)


def of_exception(exception: httpx.HTTPError, phase: Phase) -> errors.GatewayError:
    """What an exception of the transport means: `phase` says whether the answer's head or its body was awaited."""
    return next(rule(exception, phase) for class_, rule in _EXCEPTIONS if isinstance(exception, class_))


# An answer with a bad status.


class Refusal(NamedTuple):
    """An upstream's error in OpenAI's four words; a dialect fills it, whatever the upstream calls them.

    `status`: the one that says what is meant, where that is not the one that came.
    """

    message: str = ""
    type: str = ""
    param: str | None = None
    code: str | None = None
    status: int | None = None


def of_status(status: int, refusal: Refusal, headers: Mapping[str, str]) -> errors.GatewayError:
    """What an answer outside 200-299 means. `headers`: lower-case names; only when to come back is read of them."""
    status = refusal.status or status
    rule = _STATUSES.get(status) or _CLASSES.get(status // 100) or _unexpected
    return rule(status, refusal, retry_after(headers))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the upstream asked to wait: `retry-after-ms`, or `retry-after` as seconds or as a date (RFC 9110 10.2.3).

    None where it said nothing, or nothing that anybody could keep to.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return min(seconds, _LONGEST_WAIT)
    return _until(headers.get("retry-after", ""), headers.get("date", ""))


def _until(then: str, now: str) -> float | None:
    try:
        waiting = email.utils.parsedate_to_datetime(then) - email.utils.parsedate_to_datetime(now)
    except (ValueError, TypeError, OverflowError):  # TypeError: one of both without a time zone
        return None
    return min(max(waiting.total_seconds(), 0.0), _LONGEST_WAIT)


def _throttled(_status: int, _refusal: Refusal, wait: float | None) -> errors.GatewayError:
    return errors.UpstreamThrottled("The upstream is limiting the rate of requests.", retry_after=wait)


def _dry(_status: int, _refusal: Refusal, wait: float | None) -> errors.GatewayError:
    headers = errors.retry_after_headers(errors.UNSAID_WAIT if wait is None else wait)
    return errors.UpstreamQuota("The gateway's account at the upstream is out of quota.", headers=headers)


def _unauthorized(*_: object) -> errors.GatewayError:
    return errors.UpstreamUnauthorized("The upstream did not accept the gateway's credentials.")


def _unavailable(status: int, refusal: Refusal, wait: float | None) -> errors.GatewayError:
    if wait is None:
        return errors.UpstreamUnavailable("The upstream is not available.")
    return _overloaded(status, refusal, wait)


def _overloaded(_status: int, _refusal: Refusal, wait: float | None) -> errors.GatewayError:
    return errors.UpstreamOverloaded("The upstream is overloaded.", retry_after=wait)


def _failed(*_: object) -> errors.GatewayError:
    return errors.UpstreamError("The upstream failed to handle the request.")


def _timed_out(*_: object) -> errors.GatewayError:
    return errors.UpstreamTimeout("The upstream timed out.")


def _rejected(status: int, refusal: Refusal, _wait: float | None) -> errors.GatewayError:
    return errors.UpstreamRejected(
        refusal.message or "The upstream refused the request.",
        status=status,
        code=refusal.code,
        param=refusal.param,
        type_=refusal.type or "invalid_request_error",
    )


def _redirect(*_: object) -> errors.GatewayError:
    return errors.UpstreamBroken("The upstream answered with a redirect.", code="upstream_redirect")


def _unexpected(*_: object) -> errors.GatewayError:
    return errors.UpstreamBroken("The upstream answered with an unexpected status.")


_Reading = Callable[[int, Refusal, float | None], errors.GatewayError]
_STATUSES: dict[int, _Reading] = {
    401: _unauthorized,
    402: _dry,
    403: _unauthorized,
    407: _unauthorized,
    408: _failed,
    425: _failed,
    429: _throttled,
    503: _unavailable,
    504: _timed_out,
    529: _overloaded,
}
_CLASSES: dict[int, _Reading] = {3: _redirect, 4: _rejected, 5: _failed}
