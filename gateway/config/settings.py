"""The shapes of the config: names, types, bounds, defaults and units, one class for each section of the file.

Frozen, and unknown keys are refused, so that a misspelt setting can't be a silent default. A field's description is
its documentation: the JSON Schema shows it. Nothing here knows YAML, lines, the environment or how to say a mistake.
"""

import re
from ipaddress import IPv6Address
from typing import Annotated, Any, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from gateway.config.checks import contradictions

Secret = SecretStr

RESERVED = "unknown"  # the metrics' label for what is not configured


def _model_name(name: str) -> str:
    if not name or len(name) > 256 or re.search(r"[\s${}]", name):
        raise PydanticCustomError(
            "name", "a model's name is 1 to 256 characters without spaces, dollar signs or braces"
        )
    if "*" in name[:-1]:
        raise PydanticCustomError("name", "a * may only be the last character of a name")
    if name == RESERVED:
        raise PydanticCustomError("name", "the name unknown is reserved")
    return name


def _upstream_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", name) or name == RESERVED:
        raise PydanticCustomError("name", "must match [a-z0-9][a-z0-9_-]{0,62}, and not be unknown")
    return name


def _host(host: str) -> str:
    if not re.fullmatch(r"[0-9A-Za-z._:%-]+", host):
        raise PydanticCustomError("host", "must be a host name or an address")
    return host


def _some(things: tuple[Any, ...]) -> tuple[Any, ...]:
    """At least one. Field's own min_length would count only those that are right, and say one mistake twice."""
    if not things:
        raise PydanticCustomError("some", "must not be empty")
    return things


def _visible(text: str) -> str:
    if not re.fullmatch(r"[!-~]+", text):
        raise PydanticCustomError("visible", "must be visible ASCII characters without spaces, and not empty")
    return text


def _visible_secret(secret: SecretStr) -> SecretStr:
    _visible(secret.get_secret_value())
    return secret


def _callers_key(secret: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]{8,}", secret.get_secret_value()):
        raise PydanticCustomError("key", "must be at least 8 visible ASCII characters without spaces")
    return secret


_LABEL = r"[0-9A-Za-z_](?:[0-9A-Za-z_-]*[0-9A-Za-z_])?"
_AUTHORITY = re.compile(rf"(?:[^@]*@)?(?:\[([0-9A-Fa-f:.]+)\]|{_LABEL}(?:\.{_LABEL})*\.?)(?::[0-9]+)?")


def _http_url(url: str) -> SplitResult:
    """The parts of a URL that a request can be sent to. Raises PydanticCustomError."""
    try:
        parts = urlsplit(url)
        authority = _AUTHORITY.fullmatch(parts.netloc)
        sound = parts.scheme in {"http", "https"} and authority is not None and parts.port != 0
        if authority and authority[1]:
            IPv6Address(authority[1])
    except ValueError:
        sound = False
    if not sound or not re.fullmatch(r"[!-~]+", url):
        raise PydanticCustomError("url", "must be an http:// or https:// URL with a host")
    return parts


def _base_url(url: str) -> str:
    if "@" in _http_url(url).netloc:
        raise PydanticCustomError("url", "must not hold a user or a password")
    if "?" in url or "#" in url:
        raise PydanticCustomError("url", "must not have a query or a fragment")
    return url.rstrip("/")


def _proxy_url(secret: SecretStr) -> SecretStr:
    _http_url(secret.get_secret_value())
    return secret


Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[float, Field(gt=0)]
Seconds = Positive
Count = Annotated[int, Field(gt=0)]
Host = Annotated[str, AfterValidator(_host)]
HeaderText = Annotated[str, AfterValidator(_visible)]
Url = Annotated[str, AfterValidator(_base_url)]
ModelName = Annotated[str, AfterValidator(_model_name)]
UpstreamName = Annotated[str, AfterValidator(_upstream_name)]
FilePath = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """Base of all sections: what is not known is refused, and what was read does not change."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    def values(self) -> dict[str, Any]:
        """The settings in this section by name, secrets in the clear: for handing to the code that they set."""
        given = ((name, getattr(self, name)) for name in type(self).model_fields)
        return {name: value.get_secret_value() if isinstance(value, SecretStr) else value for name, value in given}


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
    key: Annotated[Secret, AfterValidator(_callers_key)] = Field(
        description="The key itself: at least 8 visible ASCII characters. Give it as ${VARIABLE}."
    )
    models: Annotated[tuple[ModelName, ...], AfterValidator(_some)] = Field(
        default=("*",), description="Names of the models that it may use; * ends a prefix, and alone means all."
    )


class Auth(Section):
    """Who may call."""

    required: bool = Field(
        default=True, description="Whether a caller must send a key; false makes every caller anonymous."
    )
    keys: tuple[Key, ...] = Field(default=(), description="The callers and their keys.")


class Timeouts(Section):
    """How long each phase of a call to an upstream may take."""

    connect: Seconds = Field(default=5.0, description="Seconds to make a connection, TLS included.")
    pool: Seconds = Field(default=1.0, description="Seconds to wait for a free connection when all are busy.")
    write: Seconds = Field(default=30.0, description="Seconds in which the upstream may take nothing of the request.")
    first_token: Seconds = Field(default=60.0, description="Seconds of silence before a stream's first event.")
    reply: Seconds = Field(default=300.0, description="Seconds of silence before a plain reply's first byte.")
    idle: Seconds = Field(default=120.0, description="Seconds of silence within a stream or a body.")
    total: Seconds = Field(
        default=600.0, description="Seconds for all attempts, up to a stream's first byte or a plain reply's end."
    )
    stream: Seconds = Field(default=1800.0, description="Seconds for a whole stream.")
    ping: Seconds = Field(
        default=15.0,
        description="Seconds of silence after which a stream's caller gets a comment, before the first event too.",
    )

    def over(self, base: "Timeouts") -> "Timeouts":
        """`base`, with what was said here in place of what it says."""
        return base.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})


class TransportConfig(Section):
    """The connections to one upstream."""

    max_connections: Count = Field(default=1000, description="Number of connections to each replica, at most.")
    keepalive_expiry: Seconds = Field(default=15.0, description="Seconds after which an idle connection is closed.")
    max_connection_age: Seconds = Field(
        default=60.0, description="Seconds after which a connection takes no further request."
    )
    ca_file: FilePath | None = Field(
        default=None, description="PEM file of the authorities to trust; absent: the public ones."
    )
    client_cert: FilePath | None = Field(
        default=None, description="PEM file of the certificate to show to the upstream."
    )
    client_key: FilePath | None = Field(
        default=None, description="PEM file of that certificate's key; absent: in client_cert."
    )
    engine: Literal["own", "httpx"] = Field(
        default="own", description="Which HTTP engine: own, the gateway's; or httpx, which is slower and knows proxies."
    )
    proxy: Annotated[Secret, AfterValidator(_proxy_url)] | None = Field(
        default=None, description="URL of an HTTP proxy on the way to the upstream; needs engine: httpx."
    )


class Upstream(Section):
    """Where requests can go."""

    kind: Literal["openai"] = Field(description="Which protocol the upstream speaks: openai.")
    url: Url | None = Field(default=None, description="Base URL, the part before /chat/completions; or give urls.")
    urls: tuple[Url, ...] = Field(default=(), description="Base URLs of the replicas of this upstream; or give url.")
    api_key: Annotated[Secret, AfterValidator(_visible_secret)] | None = Field(
        default=None, description="The gateway's key at this upstream; absent: none is sent. Give it as ${VARIABLE}."
    )
    organization: HeaderText | None = Field(
        default=None, description="Value of the openai-organization header; absent: none."
    )
    project: HeaderText | None = Field(default=None, description="Value of the openai-project header; absent: none.")
    timeouts: Timeouts = Field(
        default=Timeouts(),
        description="Timeouts of this upstream; what is absent here is as in the top-level timeouts.",
    )
    transport: TransportConfig = Field(default=TransportConfig(), description="The connections to this upstream.")

    @property
    def replicas(self) -> tuple[str, ...]:
        """Base URLs, without a slash at the end, whichever of `url` and `urls` was given."""
        return (self.url,) if self.url is not None else self.urls


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


class Model(Section):
    """What a caller may ask for, and where that goes."""

    targets: Annotated[tuple[Target, ...], AfterValidator(_some)] = Field(
        description="Where requests for this model may go, at least one."
    )


class Log(Section):
    """What is written to stdout."""

    format: Literal["json", "console"] = Field(
        default="json", description="json, one object a line; or console, lines for people."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least that is written: debug, info, warning or error."
    )


class Settings(Section):
    """Everything that an operator can set.

    Each upstream's `timeouts` are the ones that hold for it: the top-level ones are merged in already.
    """

    server: Server = Field(default=Server(), description="Where the gateway listens, and how it leaves.")
    auth: Auth = Field(default=Auth(), description="Who may call.")
    upstreams: dict[UpstreamName, Upstream] = Field(min_length=1, description="Where requests can go, by name.")
    models: dict[ModelName, Model] = Field(
        min_length=1, description="What callers may ask for, by name; * ends a prefix, and alone takes every name."
    )
    timeouts: Timeouts = Field(default=Timeouts(), description="How long each phase of a call may take.")
    log: Log = Field(default=Log(), description="What is written to stdout.")

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
            merged = upstream.timeouts.over(self.timeouts)
            self.upstreams[name] = upstream.model_copy(update={"timeouts": merged})
        return self
