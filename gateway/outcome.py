"""One table: what happened at an upstream -> what it means.

Everything that can go wrong there is turned into one GatewayError here, and every GatewayError (or its absence) into
one Outcome, which retry, breaker, balance, metrics and log all read. Pure: no I/O, no clock, no logger. Exceptions are
judged by httpx's classes and by the phase they came in, so that any transport under httpx is judged alike.
"""

import email.utils
import math
import socket
import ssl
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Literal, NamedTuple

import httpx

from gateway import errors

_SHORTEST_WAIT = 1.0
_LONGEST_WAIT = 86_400.0

Phase = Literal["head", "first_event", "body", "stream"]
"""What was awaited: an answer's head; a stream's first event (with its head); a body; more of a stream."""


class Outcome(StrEnum):
    """What came of a call or an attempt."""

    SERVED = "served"
    OVERLOADED = "overloaded"  # 429, 503: come back later
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    REJECTED = "rejected"  # the caller's fault: it will be wrong again
    UNAUTHORISED = "unauthorised"  # our key is bad, or our account is dry
    ABANDONED = "abandoned"  # the caller left: nobody's fault


_OUTCOMES: tuple[tuple[type[errors.GatewayError], Outcome], ...] = (
    (errors.CallerLeft, Outcome.ABANDONED),
    (errors.CallerError, Outcome.REJECTED),
    (errors.UpstreamRejected, Outcome.REJECTED),
    (errors.UpstreamUnauthorized, Outcome.UNAUTHORISED),
    (errors.UpstreamQuota, Outcome.UNAUTHORISED),
    (errors.UpstreamThrottled, Outcome.OVERLOADED),
    (errors.UpstreamOverloaded, Outcome.OVERLOADED),
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
    """An upstream's error in OpenAI's four words; a dialect fills it, whatever the upstream calls them."""

    message: str = ""
    type: str = ""
    param: str | None = None
    code: str | None = None


def of_status(status: int, refusal: Refusal, headers: Mapping[str, str]) -> errors.GatewayError:
    """What an answer outside 200-299 means. `headers`: lower-case names; only when to come back is read of them."""
    rule = _STATUSES.get(status) or _CLASSES.get(status // 100) or _unexpected
    return rule(status, refusal, errors.retry_after_headers(_retry_after(headers)))


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the upstream asked to wait; a second where it did not, or not in words that anybody would keep to."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and 0 <= seconds <= _LONGEST_WAIT:
            return seconds
    return _until(headers.get("retry-after", ""), headers.get("date", ""))


def _until(then: str, now: str) -> float:
    try:
        waiting = email.utils.parsedate_to_datetime(then) - email.utils.parsedate_to_datetime(now)
    except (ValueError, TypeError, OverflowError):  # TypeError: one of both without a time zone
        return _SHORTEST_WAIT
    return min(max(waiting.total_seconds(), _SHORTEST_WAIT), _LONGEST_WAIT)


def _throttled(status: int, refusal: Refusal, again: dict[str, str]) -> errors.GatewayError:
    if "insufficient_quota" in (refusal.type, refusal.code):
        return _dry(status, refusal, again)
    return errors.UpstreamThrottled("The upstream is limiting the rate of requests.", headers=again)


def _dry(_status: int, _refusal: Refusal, again: dict[str, str]) -> errors.GatewayError:
    return errors.UpstreamQuota("The gateway's account at the upstream is out of quota.", headers=again)


def _unauthorized(*_: object) -> errors.GatewayError:
    return errors.UpstreamUnauthorized("The upstream did not accept the gateway's credentials.")


def _overloaded(_status: int, _refusal: Refusal, again: dict[str, str]) -> errors.GatewayError:
    return errors.UpstreamOverloaded("The upstream is overloaded.", headers=again)


def _failed(*_: object) -> errors.GatewayError:
    return errors.UpstreamError("The upstream failed to handle the request.")


def _timed_out(*_: object) -> errors.GatewayError:
    return errors.UpstreamTimeout("The upstream timed out.")


def _rejected(status: int, refusal: Refusal, _again: dict[str, str]) -> errors.GatewayError:
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


_Reading = Callable[[int, Refusal, dict[str, str]], errors.GatewayError]
_STATUSES: dict[int, _Reading] = {
    401: _unauthorized,
    402: _dry,
    403: _unauthorized,
    407: _unauthorized,
    408: _failed,
    425: _failed,
    429: _throttled,
    503: _overloaded,
    504: _timed_out,
    529: _overloaded,
}
_CLASSES: dict[int, _Reading] = {3: _redirect, 4: _rejected, 5: _failed}
