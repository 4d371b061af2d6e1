"""The shapes of the config: names, types, bounds, defaults and units, one class for each section of the file.

Frozen, and unknown keys are refused, so that a misspelt setting can't be a silent default. A field's description is
its documentation: the JSON Schema shows it. Nothing here knows YAML, lines, the environment or how to say a mistake.
"""

from math import inf
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from gateway.config.checks import contradictions
from gateway.config.fields import (
    AttributeName,
    CallersKey,
    Count,
    HeaderName,
    HeaderValue,
    Host,
    ModelName,
    Port,
    Positive,
    ReceiverUrl,
    Seconds,
    Section,
    UpstreamName,
    some,
)
from gateway.config.upstreams import Breaker, Retry, Timeouts, Upstream


def _seconds_or_p95(after: object) -> object:
    """Refused here and not by the union, which would say of one value two things that are wrong."""
    if after == "p95":
        return after
    try:
        seconds = float(str(after))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < inf:
        raise PydanticCustomError("after", "must be p95, or seconds, more than 0")
    return seconds


class LimitsConfig(Section):
    """What a caller may send, and how slowly, before the connection is refused or closed."""

    head_bytes: Count = Field(default=32768, description="Bytes of a request's head, all fields together; over it 431.")
    head_fields: Count = Field(default=100, description="Number of header fields in a request; over it 431.")
    url_bytes: Count = Field(default=8192, description="Bytes of a request's target, path and query; over it 414.")
    head_seconds: Seconds = Field(
        default=10.0, description="Seconds from a request's first byte to the end of its head; over it 408."
    )
    idle_seconds: Seconds = Field(
        default=75.0, description="Seconds for which a connection without a request is kept open for the next one."
    )
    body_bytes: Count = Field(default=10485760, description="Bytes of a request's body; over it 413.")
    body_seconds: Seconds = Field(
        default=60.0, description="Seconds from the end of a request's head to the end of its body; over it 408."
    )
    body_rate: Positive = Field(
        default=1024.0,
        description="Bytes per second that a body must have come at, on average, after body_grace_seconds; else 408.",
    )
    body_grace_seconds: Seconds = Field(default=10.0, description="Seconds of a body before its rate is looked at.")
    stall_seconds: Seconds = Field(
        default=30.0,
        description="Seconds for which a caller may take nothing of its answer before the connection is closed.",
    )


class Server(Section):
    """Where the gateway listens, and how it leaves."""

    host: Host = Field(default="0.0.0.0", description="Address of the API port.")  # noqa: S104
    port: Port = Field(default=8080, description="Port of the OpenAI API, /healthz and /readyz; 0 takes any free one.")
    admin_host: Host | None = Field(default=None, description="Address of the admin port; absent: the same as host.")
    admin_port: Port = Field(
        default=8081, description="Port of /metrics and the admin API, never exposed to callers; 0 takes any free one."
    )
    drain_seconds: float = Field(
        default=120.0, ge=0, description="Seconds that calls in progress get to end after a signal to stop."
    )
    linger_seconds: float = Field(
        default=0.0,
        ge=0,
        description="Seconds after a signal to stop in which calls are still taken while /readyz already says no.",
    )
    limits: LimitsConfig = Field(default=LimitsConfig(), description="What a caller may send, and how slowly.")

    @property
    def admin_address(self) -> str:
        """The address that the admin port listens on."""
        return self.admin_host or self.host


class Key(Section):
    """One caller and the key that it sends."""

    name: str = Field(min_length=1, max_length=128, description="Who it is: shown in the log, and unique.")
    key: CallersKey = Field(description="The key itself: at least 8 visible ASCII characters. Give it as ${VARIABLE}.")
    models: Annotated[tuple[ModelName, ...], AfterValidator(some)] = Field(
        default=("*",), description="Names of the models that it may use; * ends a prefix, and alone means all."
    )


class Auth(Section):
    """Who may call."""

    required: bool = Field(
        default=True, description="Whether a caller must send a key; false makes every caller anonymous."
    )
    keys: tuple[Key, ...] = Field(default=(), description="The callers and their keys.")


class Target(Section):
    """One place where a model's requests may go."""

    upstream: str = Field(description="Name of an upstream.")
    model: str | None = Field(
        default=None,
        min_length=1,
        description="Name that the upstream knows the model by; absent: as the caller named it.",
    )
    weight: float = Field(
        default=1.0, ge=0, le=1000000, description="Share of the requests, in proportion to the other targets; 0: none."
    )


class Hedge(Section):
    """When a second attempt is started beside a slow one; whichever speaks first is served."""

    after: Annotated[Seconds | Literal["p95"], BeforeValidator(_seconds_or_p95)] = Field(
        description="Seconds without a first event until a second attempt starts elsewhere, or p95: as long as 95 % "
        "of this model's calls take to it; without hedge: never."
    )


class Model(Section):
    """What a caller may ask for, and where that goes."""

    targets: Annotated[tuple[Target, ...], AfterValidator(some)] = Field(
        description="Where requests for this model may go, at least one."
    )
    fallbacks: tuple[str, ...] = Field(
        default=(),
        description="Models to try, in this order, when no target serves the call; their own fallbacks are not followed.",
    )
    hedge: Hedge | None = Field(
        default=None, description="When a second attempt is started beside a slow one; absent: never."
    )


class Log(Section):
    """What is written to stdout."""

    format: Literal["json", "console"] = Field(
        default="json", description="json, one object a line; or console, lines for people."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least that is written: debug, info, warning or error."
    )


class Tracing(Section):
    """Where spans go, which calls have them, and as whose."""

    endpoint: ReceiverUrl = Field(
        description="URL of the OTLP receiver; over http, where it has no path, that is /v1/traces."
    )
    protocol: Literal["grpc", "http"] = Field(default="grpc", description="How OTLP is spoken: grpc, or http.")
    headers: dict[HeaderName, HeaderValue] = Field(
        default={}, description="Headers for the receiver, such as its key, by name. Give values as ${VARIABLE}."
    )
    ratio: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of the calls that are sampled, where the caller's traceparent does not say; 0: only those.",
    )
    service: str = Field(default="gateway", min_length=1, description="The resource's service.name.")
    resource: dict[AttributeName, str] = Field(
        default={}, description="Further attributes of the resource, such as deployment.environment.name."
    )
    queue: Count = Field(
        default=8192, description="Spans that may wait to be sent; over it they are dropped and counted."
    )
    timeout: Seconds = Field(default=10.0, description="Seconds for sending a batch, with what is tried again.")


class Settings(Section):
    """Everything that an operator can set.

    Each upstream's `timeouts`, `retry` and `breaker` are the ones that hold for it: the top-level ones are merged in.
    """

    server: Server = Field(default=Server(), description="Where the gateway listens, and how it leaves.")
    auth: Auth = Field(default=Auth(), description="Who may call.")
    upstreams: dict[UpstreamName, Upstream] = Field(min_length=1, description="Where requests can go, by name.")
    models: dict[ModelName, Model] = Field(
        min_length=1, description="What callers may ask for, by name; * ends a prefix, and alone takes every name."
    )
    timeouts: Timeouts = Field(default=Timeouts(), description="How long each phase of a call may take.")
    retry: Retry = Field(default=Retry(), description="When a call that failed is tried again.")
    breaker: Breaker = Field(default=Breaker(), description="When a replica that fails is left out.")
    log: Log = Field(default=Log(), description="What is written to stdout.")
    tracing: Tracing | None = Field(
        default=None, description="Where spans go, which calls have them, and as whose; absent: nowhere."
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        mistakes: list[InitErrorDetails] = [
            {
                "type": PydanticCustomError("contradiction", "{said}", {"said": mistake.message}),
                "loc": mistake.place,
                "input": "",
            }
            for mistake in contradictions(self.model_dump(exclude_unset=True))
        ]
        if mistakes:
            raise ValidationError.from_exception_data("Settings", mistakes, hide_input=True)
        for name, upstream in self.upstreams.items():
            self.upstreams[name] = upstream.merged(self.timeouts, self.retry, self.breaker)
        return self
