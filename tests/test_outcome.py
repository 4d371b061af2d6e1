"""The whole of what can happen at an upstream, and what it means."""

import json
import socket
import ssl
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import errors
from gateway.outcome import (
    REACTIONS,
    Again,
    Outcome,
    Phase,
    Reaction,
    Refusal,
    Verdict,
    end_reason,
    judge,
    of_exception,
    of_status,
    reaction,
    retry_after,
)

PHASES: tuple[Phase, ...] = ("head", "first_event", "body", "stream")
HEAD = ("head", "first_event")


def classes(base: type[Exception]) -> Iterator[type[Exception]]:
    yield base
    for class_ in base.__subclasses__():
        yield from classes(class_)


def code(exception: httpx.HTTPError, phase: Phase) -> str | None:
    return of_exception(exception, phase).code


# Exceptions.


@pytest.mark.parametrize(
    ("exception", "class_", "codes"),
    [
        (httpx.ConnectError("x"), errors.UpstreamUnreachable, ["upstream_unreachable"] * 4),
        (httpx.ConnectTimeout("x"), errors.UpstreamTimeout, ["upstream_connect_timeout"] * 4),
        (httpx.PoolTimeout("x"), errors.PoolExhausted, ["pool_exhausted"] * 4),
        (httpx.WriteTimeout("x"), errors.UpstreamTimeout, ["upstream_write_timeout"] * 4),
        (
            httpx.ReadTimeout("x"),
            errors.UpstreamTimeout,
            ["upstream_first_byte_timeout"] * 2 + ["upstream_idle_timeout"] * 2,
        ),
        (
            httpx.TimeoutException("x"),
            errors.UpstreamTimeout,
            ["upstream_timeout", "upstream_first_byte_timeout", "upstream_timeout", "upstream_stream_timeout"],
        ),
        (
            httpx.RemoteProtocolError("x"),
            errors.UpstreamBroken,
            ["upstream_invalid_response"] * 2 + ["upstream_truncated", "upstream_stream_interrupted"],
        ),
        (
            httpx.ReadError("x"),
            errors.UpstreamBroken,
            ["upstream_reset"] * 2 + ["upstream_truncated", "upstream_stream_interrupted"],
        ),
        (
            httpx.WriteError("x"),
            errors.UpstreamBroken,
            ["upstream_reset"] * 2 + ["upstream_truncated", "upstream_stream_interrupted"],
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_exception_means_one_thing_in_each_phase(
    exception: httpx.HTTPError, class_: type[errors.GatewayError], codes: list[str]
) -> None:
    for phase, expected in zip(PHASES, codes, strict=True):
        error = of_exception(exception, phase)
        assert (type(error), error.code) == (class_, expected)


@pytest.mark.parametrize("class_", list(classes(httpx.TransportError)), ids=lambda class_: class_.__name__)
def test_every_exception_of_a_transport_means_something_and_its_words_are_not_told(class_: type[Exception]) -> None:
    exception = class_("http://10.0.0.7:8000 sk-canary")
    assert isinstance(exception, httpx.HTTPError)
    for phase in PHASES:
        error = of_exception(exception, phase)
        assert isinstance(error, errors.UpstreamError | errors.PoolExhausted)
        assert b"canary" not in error.body()
        assert b"10.0.0.7" not in error.body()


def caused(by: BaseException, *, hidden: bool) -> httpx.ConnectError:
    """A ConnectError as transports raise it: with a cause, or with one that can only be seen as its context."""
    try:
        try:
            raise by
        except OSError as cause:
            if hidden:
                raise OSError("all attempts failed")  # noqa: B904
            raise OSError("all attempts failed") from cause
    except OSError as cause:
        error = httpx.ConnectError("no connection")
        error.__cause__ = cause
        return error


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (socket.gaierror(-2, "Name or service not known"), "upstream_dns"),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), "upstream_tls"),
        (ssl.SSLError(1, "wrong version number"), "upstream_tls"),
        (ConnectionRefusedError(111, "refused"), "upstream_unreachable"),
        (OSError(113, "no route"), "upstream_unreachable"),
    ],
)
def test_why_no_connection_was_made_is_found_among_the_causes(cause: OSError, expected: str, hidden: bool) -> None:
    assert code(caused(cause, hidden=hidden), "head") == expected


# Statuses.

NOW = "Wed, 21 Oct 2026 07:28:00 GMT"
QUOTED = Refusal("Words of the upstream.", "some_type", "n", "some_code")
STATUSES: dict[int, tuple[type[errors.GatewayError], int, str | None]] = {
    300: (errors.UpstreamBroken, 502, "upstream_redirect"),
    307: (errors.UpstreamBroken, 502, "upstream_redirect"),
    400: (errors.UpstreamRejected, 400, "some_code"),
    401: (errors.UpstreamUnauthorized, 502, "upstream_auth"),
    402: (errors.UpstreamQuota, 503, "upstream_quota"),
    403: (errors.UpstreamUnauthorized, 502, "upstream_auth"),
    404: (errors.UpstreamRejected, 404, "some_code"),
    407: (errors.UpstreamUnauthorized, 502, "upstream_auth"),
    408: (errors.UpstreamError, 502, "upstream_error"),
    409: (errors.UpstreamRejected, 409, "some_code"),
    413: (errors.UpstreamRejected, 413, "some_code"),
    422: (errors.UpstreamRejected, 422, "some_code"),
    424: (errors.UpstreamRejected, 424, "some_code"),
    425: (errors.UpstreamError, 502, "upstream_error"),
    429: (errors.UpstreamThrottled, 429, "rate_limit_exceeded"),
    499: (errors.UpstreamRejected, 499, "some_code"),
    500: (errors.UpstreamError, 502, "upstream_error"),
    501: (errors.UpstreamError, 502, "upstream_error"),
    502: (errors.UpstreamError, 502, "upstream_error"),
    503: (errors.UpstreamUnavailable, 503, "upstream_unavailable"),
    504: (errors.UpstreamTimeout, 504, "upstream_timeout"),
    520: (errors.UpstreamError, 502, "upstream_error"),
    529: (errors.UpstreamOverloaded, 503, "upstream_overloaded"),
    100: (errors.UpstreamBroken, 502, "upstream_invalid_response"),
    199: (errors.UpstreamBroken, 502, "upstream_invalid_response"),
    600: (errors.UpstreamBroken, 502, "upstream_invalid_response"),
    999: (errors.UpstreamBroken, 502, "upstream_invalid_response"),
}


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_means_one_thing(status: int) -> None:
    error = of_status(status, QUOTED, {})
    assert (type(error), error.status, error.code) == STATUSES[status]
    assert error.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("said", ["0", "7", "Wed, 21 Oct 2026 07:28:30 GMT"])
def test_a_503_with_a_time_to_come_back_is_overload_and_one_without_is_a_failure(said: str) -> None:
    told = of_status(503, QUOTED, {"retry-after": said, "date": NOW})
    assert (type(told), judge(told)) == (errors.UpstreamOverloaded, Outcome.OVERLOADED)
    for junk in ({}, {"retry-after": "soon"}, {"retry-after": "-1"}):
        untold = of_status(503, QUOTED, junk)
        assert (type(untold), judge(untold)) == (errors.UpstreamUnavailable, Outcome.FAILED)
    assert judge(of_status(529, QUOTED, {})) is Outcome.OVERLOADED


def test_a_403_that_means_one_model_only_is_no_matter_of_the_key() -> None:
    error = of_status(403, Refusal("No access.", "invalid_request_error", None, "model_not_found", status=404), {})
    assert (type(error), error.status, error.code) == (errors.UpstreamRejected, 404, "model_not_found")
    assert reaction(error) == Reaction(Again.NEVER)


@pytest.mark.parametrize("status", [*range(100, 200), *range(300, 600)])
def test_only_a_refusal_of_the_callers_request_is_quoted(status: int) -> None:
    error = of_status(status, QUOTED, {})
    told = json.loads(error.body())["error"]
    if isinstance(error, errors.UpstreamRejected):
        assert told == {"message": "Words of the upstream.", "type": "some_type", "param": "n", "code": "some_code"}
    else:
        assert "Words" not in told["message"]
        assert told["param"] is None


def test_a_refusal_without_words_is_still_an_error() -> None:
    error = of_status(400, Refusal(), {})
    told = json.loads(error.body())["error"]
    assert told["message"]
    assert (told["type"], told["param"], told["code"]) == ("invalid_request_error", None, None)


@pytest.mark.parametrize("came", [200, 403, 429])
def test_what_is_meant_counts_and_not_the_status_that_came(came: int) -> None:
    error = of_status(came, Refusal(status=402), {"retry-after": "7"})
    assert (type(error), error.status) == (errors.UpstreamQuota, 503)
    assert error.headers["retry-after"] == "7"


SAID: list[tuple[dict[str, str], float | None]] = [
    ({}, None),
    ({"retry-after": "7"}, 7),
    ({"retry-after": "0"}, 0),
    ({"retry-after": "1.5"}, 1.5),
    ({"retry-after": " 7 "}, 7),
    ({"retry-after": "7", "retry-after-ms": "250"}, 0.25),
    ({"retry-after": "7", "retry-after-ms": "soon"}, 7),
    ({"retry-after": "7", "retry-after-ms": "nan"}, 7),
    ({"retry-after": "7", "retry-after-ms": "-1"}, 7),
    ({"retry-after-ms": "12"}, 0.012),
    ({"retry-after-ms": "1e9"}, 86_400),
    ({"retry-after": "-5"}, None),
    ({"retry-after": "inf"}, None),
    ({"retry-after": "nan"}, None),
    ({"retry-after": "1e9"}, 86_400),
    ({"retry-after": "1e300"}, 86_400),
    ({"retry-after": "9" * 400}, None),
    ({"retry-after": "soon"}, None),
    ({"retry-after": ""}, None),
    ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": NOW}, 30),
    ({"retry-after": "Wed, 21 Oct 2020 07:28:30 GMT", "date": NOW}, 0),
    ({"retry-after": "Wed, 21 Oct 2099 07:28:30 GMT", "date": NOW}, 86_400),
    ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"}, None),
    ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 -0000"}, None),
    ({"retry-after": "Wed, 99 Oct 2026 07:28:30 GMT", "date": NOW}, None),
    ({"retry-after": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "date": NOW}, None),
]


@pytest.mark.parametrize(("headers", "seconds"), SAID)
def test_when_to_come_back_is_what_the_upstream_said_if_anybody_could_keep_to_it(
    headers: dict[str, str], seconds: float | None
) -> None:
    for given_ in (headers, httpx.Headers(headers)):
        assert retry_after(given_) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(("headers", "seconds"), SAID)
@pytest.mark.parametrize("status", [402, 429, 503, 529])
def test_when_to_come_back_is_always_told_in_both_headers(
    status: int, headers: dict[str, str], seconds: float | None
) -> None:
    error = of_status(status, Refusal(), headers)
    milliseconds = round(1000 * (1 if seconds is None else seconds))
    assert error.headers["retry-after-ms"] == str(milliseconds)
    assert error.headers["retry-after"] == str(-(-milliseconds // 1000))
    if isinstance(error, errors.UpstreamThrottled):
        assert error.retry_after == (None if seconds is None else pytest.approx(seconds))


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["retry-after", "retry-after-ms", "date"]),
        st.text(max_size=30) | st.sampled_from([NOW, "Wed, 21 Oct", "21 Oct 99999 1:1:1 +9999", "1e5", "Oct"]),
    )
)
def test_any_words_about_when_to_come_back_are_survived(headers: dict[str, str]) -> None:
    assert 0 <= int(of_status(429, Refusal(), headers).headers["retry-after-ms"]) <= 86_400_000
    assert (seconds := retry_after(headers)) is None or 0 <= seconds <= 86_400


# Outcomes.

JUDGED: dict[type[errors.GatewayError], Outcome] = {
    errors.GatewayError: Outcome.FAILED,
    errors.Internal: Outcome.FAILED,
    errors.Unavailable: Outcome.OVERLOADED,
    errors.ShuttingDown: Outcome.OVERLOADED,
    errors.Overloaded: Outcome.OVERLOADED,
    errors.PoolExhausted: Outcome.OVERLOADED,
    errors.CallerLeft: Outcome.ABANDONED,
    errors.UpstreamError: Outcome.FAILED,
    errors.UpstreamUnreachable: Outcome.FAILED,
    errors.UpstreamTimeout: Outcome.TIMED_OUT,
    errors.DeadlinePassed: Outcome.ABANDONED,
    errors.UpstreamBroken: Outcome.FAILED,
    errors.UpstreamThrottled: Outcome.OVERLOADED,
    errors.UpstreamOverloaded: Outcome.OVERLOADED,
    errors.UpstreamUnavailable: Outcome.FAILED,
    errors.UpstreamQuota: Outcome.UNAUTHORISED,
    errors.UpstreamUnauthorized: Outcome.UNAUTHORISED,
    errors.UpstreamRejected: Outcome.REJECTED,
}


@pytest.mark.parametrize("class_", list(classes(errors.GatewayError)), ids=lambda class_: class_.__name__)
def test_every_error_has_its_outcome(class_: type[errors.GatewayError]) -> None:
    error = class_.__new__(class_)
    expected = Outcome.REJECTED if issubclass(class_, errors.CallerError) else JUDGED[class_]
    assert judge(error) == expected


def test_nothing_wrong_is_served_and_done() -> None:
    assert (judge(None), end_reason(None)) == (Outcome.SERVED, "done")


def test_an_end_reason_is_a_code_of_ours_whatever_the_upstream_says() -> None:
    own = {str(of_status(status, Refusal(), {}).code) for status in STATUSES}
    reasons = {end_reason(of_status(status, QUOTED, {})) for status in range(300, 600)}
    assert reasons <= own | {"upstream_rejected"}
    assert end_reason(errors.CallerError("x", code="invalid_json")) == "invalid_json"


# Reactions.

FAILURE = Reaction(Again.ANYWHERE, Verdict.FAILED)
THROTTLE = Reaction(Again.ANYWHERE, cools=True)
REFUSED = Reaction(Again.OTHER_UPSTREAM, key=Verdict.FAILED)
NOTHING = Reaction(Again.NEVER)
MADE_OF: dict[type[errors.GatewayError], Reaction] = {
    errors.Unsupported: Reaction(Again.OTHER_UPSTREAM),  # the others may be able to
    errors.GatewayError: FAILURE,
    errors.Internal: FAILURE,
    # Here it is we who can take no more: no replica is to blame, and to wait again would be a second queue.
    errors.Unavailable: NOTHING,
    errors.ShuttingDown: NOTHING,
    errors.Overloaded: NOTHING,
    errors.PoolExhausted: Reaction(Again.ELSEWHERE),
    errors.CallerLeft: NOTHING,
    errors.UpstreamError: FAILURE,
    errors.UpstreamUnreachable: FAILURE,
    errors.UpstreamTimeout: FAILURE,
    errors.DeadlinePassed: NOTHING,
    errors.UpstreamBroken: FAILURE,
    errors.UpstreamThrottled: THROTTLE,
    errors.UpstreamOverloaded: THROTTLE,
    errors.UpstreamUnavailable: FAILURE,
    errors.UpstreamQuota: REFUSED,
    errors.UpstreamUnauthorized: REFUSED,
    errors.UpstreamRejected: NOTHING,
}


@pytest.mark.parametrize("class_", list(classes(errors.GatewayError)), ids=lambda class_: class_.__name__)
def test_every_error_has_its_reaction(class_: type[errors.GatewayError]) -> None:
    error = class_.__new__(class_)
    assert reaction(error) == MADE_OF.get(class_, NOTHING if issubclass(class_, errors.CallerError) else None)


def test_every_outcome_has_its_reaction_and_only_a_served_call_speaks_for_a_replica_and_its_key() -> None:
    assert set(REACTIONS) == set(Outcome)
    assert reaction(None) == Reaction(Again.NEVER, Verdict.SERVED, Verdict.SERVED)
    for outcome, told in REACTIONS.items():
        assert (told.replica is Verdict.SERVED) is (told.key is Verdict.SERVED) is (outcome is Outcome.SERVED)


@pytest.mark.parametrize(
    ("code", "again"),
    [
        ("upstream_tls", Again.ELSEWHERE),
        ("upstream_redirect", Again.ELSEWHERE),
        ("upstream_bad_content_type", Again.ELSEWHERE),
        ("upstream_bad_encoding", Again.ELSEWHERE),
        ("upstream_response_too_large", Again.NEVER),
        ("upstream_dns", Again.ANYWHERE),
        ("upstream_truncated", Again.ANYWHERE),
        ("upstream_stream_incomplete", Again.ANYWHERE),
    ],
)
def test_what_would_be_the_same_again_is_not_tried_again_in_the_same_place(code: str, again: Again) -> None:
    assert reaction(errors.UpstreamBroken("x", code=code)).again is again


@pytest.mark.parametrize("status", range(400, 500))
def test_no_refusal_of_a_request_counts_against_a_replica_unless_it_tells_of_trouble_there(status: int) -> None:
    assert (reaction(of_status(status, QUOTED, {})).replica is Verdict.FAILED) is (status in (408, 425))


@pytest.mark.parametrize("code", ["upstream_redirect", "upstream_tls", "overloaded", "upstream_response_too_large"])
def test_a_code_that_an_upstream_chose_changes_no_reaction(code: str) -> None:
    assert reaction(of_status(400, Refusal(code=code), {})) == NOTHING
    assert reaction(of_status(500, Refusal(code=code), {})) == FAILURE


def test_an_answer_that_is_too_large_is_held_against_nobody() -> None:
    # Whoever asks for so much gets as much from any replica, and five such callers would eject them all.
    assert reaction(errors.UpstreamBroken("x", code="upstream_response_too_large")) == NOTHING
