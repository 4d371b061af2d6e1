"""Every failure that a caller can be told of, and nothing else.

An error says what happened (`code`), how OpenAI's SDKs class it (`status`, `type`) and whose fault it is (`source`).
This file must not know HTTP libraries, upstreams or metrics. The tree::

    GatewayError
    ├── CallerError                  400  the request is wrong; the same request will be wrong again
    │   ├── Unauthorized             401  invalid_api_key
    │   ├── NotFound                 404  unknown_url
    │   ├── ModelNotFound            404  model_not_found
    │   ├── MethodNotAllowed         405  method_not_allowed
    │   ├── CallerTimeout            408  request_timeout: head or body came too slowly
    │   ├── BodyTooLarge             413  request_too_large
    │   ├── UrlTooLong               414  url_too_long
    │   ├── Unsupported              400  unsupported_parameter, unsupported_endpoint: not with this upstream
    │   ├── UnsupportedMedia         415  unsupported_content_type
    │   └── HeadTooLarge             431  headers_too_large
    ├── Internal                     500  internal_error: a fault of ours
    ├── Unavailable                  503  the gateway cannot take the call now
    │   ├── ShuttingDown             503  server_shutting_down
    │   ├── Overloaded               503  overloaded: every place at the upstream is taken, and so is the queue for one
    │   └── PoolExhausted            503  pool_exhausted
    ├── CallerLeft                   499  the caller closed the connection; never sent, only recorded
    └── UpstreamError                502  an upstream was tried and failed
        ├── UpstreamUnreachable      502  upstream_unreachable (also upstream_dns, upstream_tls)
        ├── UpstreamTimeout          504  upstream_connect_timeout, _write_, _first_byte_, _idle_, upstream_timeout
        │   └── DeadlinePassed       504  deadline_exceeded: the time is up that the caller itself had set
        ├── UpstreamBroken           502  it answered, but not with what was asked for
        ├── UpstreamThrottled        429  rate_limit_exceeded
        │   └── UpstreamOverloaded   503  upstream_overloaded: it said when to come back
        ├── UpstreamUnavailable      503  upstream_unavailable: it did not
        ├── UpstreamQuota            503  upstream_quota: our account there is dry
        ├── UpstreamUnauthorized     502  upstream_auth: our key there was refused
        └── UpstreamRejected         4xx  the upstream refused the caller's request
"""

from collections.abc import Mapping
from typing import ClassVar

import orjson

NO_RETRY = {"x-should-retry": "false"}
UNSAID_WAIT = 1.0  # seconds that a caller is told to wait where the upstream named none


class GatewayError(Exception):
    """Base of all; a subclass sets what is always true of it, an instance what is true of this failure.

    `message` is shown to the caller: it never holds an upstream's host, a key, a prompt or a trace.
    `headers` are sent with the answer (lower-case names).
    """

    status: int = 500
    type: str = "server_error"
    code: str | None = "internal_error"
    source: ClassVar[str] = "gateway"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers: dict[str, str] = dict(headers or {})
        if code is not None:
            self.code = code

    def body(self) -> bytes:
        """The JSON that OpenAI's SDKs read: one `error` object, always with all four keys."""
        return orjson.dumps(
            {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}
        )

    def event(self) -> bytes:
        """The same as one SSE event: what the SDKs raise on when a stream has begun."""
        return b"data: " + self.body() + b"\n\n"


class CallerError(GatewayError):
    """The request is wrong."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"
    source = "caller"


class Unauthorized(CallerError):
    """No key, or one that is not known: the same words for both."""

    status = 401
    code = "invalid_api_key"

    def __init__(self, message: str = "Incorrect API key provided.") -> None:
        super().__init__(message, headers={"www-authenticate": "Bearer"})


class NotFound(CallerError):
    """No such path."""

    status = 404
    code = "unknown_url"


class ModelNotFound(CallerError):
    """No such model, or not for this key: callers can't tell which, so that names can't be guessed."""

    status = 404
    code = "model_not_found"

    def __init__(self) -> None:
        super().__init__("The model does not exist or you do not have access to it.", param="model")


class MethodNotAllowed(CallerError):
    """The path exists, the method does not."""

    status = 405
    code = "method_not_allowed"


class Unsupported(CallerError):
    """The upstream can't do what is asked for; another one may. It was not sent there."""

    code = "unsupported_parameter"


class CallerTimeout(CallerError):
    """The caller sent its head or body too slowly."""

    status = 408
    code = "request_timeout"


class BodyTooLarge(CallerError):
    """The body is over the limit."""

    status = 413
    code = "request_too_large"


class UrlTooLong(CallerError):
    """The request target is over the limit."""

    status = 414
    code = "url_too_long"


class UnsupportedMedia(CallerError):
    """A content type or encoding that the gateway does not read."""

    status = 415
    code = "unsupported_content_type"


class HeadTooLarge(CallerError):
    """Too many header fields, or too many bytes of them."""

    status = 431
    code = "headers_too_large"


class Internal(GatewayError):
    """A fault of ours; the request id finds the log line that explains it. It may have come after an upstream was tried."""

    def __init__(self, request_id: str) -> None:
        message = f"The gateway failed to handle this request (request id {request_id})."
        super().__init__(message, headers=NO_RETRY)


class Unavailable(GatewayError):
    """Not now; every such answer says when to come back."""

    status = 503
    code = "unavailable"

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message, headers=retry_after_headers(retry_after))


class ShuttingDown(Unavailable):
    """The drain's deadline has passed with this call still open."""

    code = "server_shutting_down"


class Overloaded(Unavailable):
    """Each replica has as many calls as it may have, and as many as may wait are waiting: nothing was tried."""

    code = "overloaded"


class PoolExhausted(Unavailable):
    """Every connection to the upstream was busy for as long as a call may wait for one."""

    code = "pool_exhausted"


class CallerLeft(GatewayError):
    """The caller closed the connection. 499 is nginx's number for it; it is recorded and never sent."""

    status = 499
    code = "caller_left"
    source = "caller"


class UpstreamError(GatewayError):
    """An upstream was tried and failed. `x-should-retry: false`: the gateway has done what retrying could do."""

    status = 502
    code: str | None = "upstream_error"
    source = "upstream"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, code=code, param=param, headers={**NO_RETRY, **(headers or {})})


class UpstreamUnreachable(UpstreamError):
    """No connection was made, so the request was not executed."""

    code = "upstream_unreachable"


class UpstreamTimeout(UpstreamError):
    """A deadline passed; `code` says which."""

    status = 504
    code = "upstream_timeout"


class DeadlinePassed(UpstreamTimeout):
    """The caller had said how long it would wait, and the reply was not complete by then."""

    code = "deadline_exceeded"

    def __init__(self, message: str = "The time is up that this request had set itself.") -> None:
        super().__init__(message)


class UpstreamBroken(UpstreamError):
    """It answered, but not with what was asked for; `code` says how."""

    code = "upstream_invalid_response"


class UpstreamThrottled(UpstreamError):
    """The upstream said 429. `retry_after`: seconds after which it wants to be asked again, None where it did not say."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message, headers=retry_after_headers(UNSAID_WAIT if retry_after is None else retry_after))
        self.retry_after = retry_after


class UpstreamOverloaded(UpstreamThrottled):
    """The upstream said 503 and when to come back, or 529."""

    status = 503
    type = "server_error"
    code = "upstream_overloaded"


class UpstreamUnavailable(UpstreamError):
    """The upstream said 503, and not when to come back: something is broken there."""

    status = 503
    code = "upstream_unavailable"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers=retry_after_headers(UNSAID_WAIT))


class UpstreamQuota(UpstreamError):
    """The gateway's own account at the upstream is out of quota: not the caller's fault, and not for the caller to mend."""

    status = 503
    code = "upstream_quota"


class UpstreamUnauthorized(UpstreamError):
    """The upstream refused the gateway's key. Never a 401: callers would throw away their own."""

    code = "upstream_auth"


class UpstreamRejected(UpstreamError):
    """The upstream refused the caller's request (400, 404, 413, 422, ...): its status and words are passed on."""

    type = "invalid_request_error"
    source = "caller"

    def __init__(
        self, message: str, *, status: int, code: str | None, param: str | None, type_: str = "invalid_request_error"
    ) -> None:
        super().__init__(message, param=param)
        self.status = status
        self.type = type_
        self.code = code  # as the upstream gave it, None too


def retry_after_headers(seconds: float) -> dict[str, str]:
    """`retry-after` (whole seconds, rounded up: RFC 9110 10.2.3) and `retry-after-ms`, which the SDKs read first."""
    milliseconds = max(0, round(seconds * 1000))
    return {"retry-after": str(-(-milliseconds // 1000)), "retry-after-ms": str(milliseconds)}
