"""The shapes of an upstream in the config: where it is, how long it may take, and what is done when it fails.

Frozen, and unknown keys are refused, as in `settings`, which holds the other sections. Nothing here knows what the
numbers do: the rooms that they set mirror them, and a test holds the defaults together.
"""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from gateway.config.fields import (
    Count,
    FilePath,
    HeaderText,
    ProxyUrl,
    Seconds,
    Section,
    TensorMeaning,
    TensorName,
    Url,
    UrlPath,
    VisibleSecret,
    base_url,
)
from gateway.kinds import UpstreamKind


class Merged(Section):
    """A section that an upstream can say again, in part, for itself."""

    def over(self, base: Self) -> Self:
        """`base`, with what was said here in place of what it says."""
        return base.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})


class Timeouts(Merged):
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


class Retry(Merged):
    """When a call that failed is tried again, before its caller has got anything."""

    attempts: int = Field(
        default=3, ge=1, le=10, description="Attempts that a call gets, the first, fallbacks and hedges included."
    )
    base: Seconds = Field(
        default=0.25,
        description="Seconds up to which the first wait for another try at the same place is drawn; doubled each time.",
    )
    cap: Seconds = Field(default=8.0, description="Seconds up to which any such wait is drawn, at most.")
    budget: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Further attempts that an upstream pays for, for each call that began there in the last 10 seconds.",
    )
    reserve: int = Field(default=10, ge=0, description="Number of further attempts that it pays for beyond those.")
    longest_wait: float = Field(
        default=5.0,
        ge=0,
        le=120,
        description="Seconds; a longer Retry-After is not waited for.",
    )


class Breaker(Merged):
    """When a replica that fails is left out (ejected), and how it comes back."""

    failures: Count = Field(default=5, description="Failures in a row that eject a replica.")
    served: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="Share of calls served, in the window, under which a replica is ejected; 0: off.",
    )
    volume: Count = Field(default=10, description="Number of calls in the window from which that share is looked at.")
    window: Seconds = Field(default=10.0, description="Seconds over which that share is taken.")
    ejection: Seconds = Field(
        default=30.0, description="Seconds of the first ejection; the second is twice as long, the third three times."
    )
    max_ejection: Seconds = Field(default=300.0, description="Seconds of an ejection at most.")
    slow_start: float = Field(
        default=30.0, ge=0, description="Seconds over which a replica that came back gets its share again; 0: at once."
    )


class Concurrency(Section):
    """How many calls an upstream gets at once, and what happens to more: they wait, a few of them, and not for long."""

    limit: Count = Field(default=1000, description="Calls at once at each replica; at most transport.max_connections.")
    queue: int = Field(
        default=100,
        ge=0,
        description="Calls that may wait while all replicas are at their limit, over it 503; 0: none.",
    )
    wait: Seconds = Field(default=1.0, description="Seconds that such a call waits at most, then 503.")


class Health(Section):
    """How replicas are asked, between calls, whether they are well: never by a completion."""

    enabled: bool | None = Field(
        default=None,
        description="Whether replicas are asked; absent: by kind, and for openai false, because asking may cost.",
    )
    path: UrlPath | None = Field(
        default=None,
        description="What is asked for, from the root of the URL's host, as in /health; absent: by kind, for openai the models.",
    )
    interval: Seconds = Field(default=10.0, description="Seconds from one check of a replica to the next.")
    timeout: Seconds = Field(default=3.0, description="Seconds that a check may take.")
    failures: Count = Field(default=2, description="Checks failed in a row after which a replica is unhealthy.")


class Load(Section):
    """How the engines say, between calls, how much they have to do: whoever else may be sending them work."""

    enabled: bool | None = Field(
        default=None,
        description="Whether engines are asked; absent: by kind, and true where the kind's engine can tell.",
    )
    path: UrlPath = Field(
        default="/metrics", description="Where an engine's metrics are, from the root of the URL's host."
    )
    port: int | None = Field(
        ge=1,
        le=65535,
        default=None,
        description="Port of an engine's metrics, where they are without TLS and without a key; absent: by kind, for triton "
        "8002, and else the URL's.",
    )
    interval: Seconds = Field(
        default=1.5, description="Seconds from one look to the next; figures older than three of them are forgotten."
    )


class Azure(Section):
    """Azure's form of OpenAI: its paths, and its header for the key."""

    api_version: HeaderText | None = Field(
        default=None,
        description="Version of Azure's API, as in 2024-10-21, with whose paths the deployment is named in the URL; "
        "absent: the newer paths, under /openai/v1.",
    )


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
    proxy: ProxyUrl | None = Field(
        default=None, description="URL of an HTTP proxy on the way to the upstream; needs engine: httpx."
    )


class Replica(Section):
    """One of the `urls` of an upstream, which may be said as the URL alone."""

    url: Url = Field(description="Base URL of one replica.")
    weight: float = Field(
        default=1.0, gt=0, le=1000000, description="Share of the calls, in proportion to the other replicas."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: object) -> object:
        if isinstance(given, str):
            return {"url": base_url(given)}
        if given is not None and not isinstance(given, Mapping | cls):
            raise PydanticCustomError("replica", "must be a URL, or a mapping with url and weight")
        return given


class Upstream(Section):
    """Where requests can go."""

    kind: UpstreamKind = Field(
        description="What the upstream is: openai, for all that speaks OpenAI's protocol unchanged, or qwen, vllm, triton, "
        "tgi, sglang, llamacpp, ollama."
    )
    url: Url | None = Field(
        default=None,
        description="Base URL, the part before /chat/completions (with azure the resource's, for triton the server's, "
        "which may be grpc://); or give urls.",
    )
    urls: tuple[Replica, ...] = Field(
        default=(),
        description="Base URLs of the replicas of this upstream, each as text or as url and weight; or give url.",
    )
    discovery: Literal["none", "dns"] = Field(
        default="none",
        description="dns: every address of the host name in url is a replica, and it is looked up again every 15 seconds.",
    )
    balance: Literal["least_load", "round_robin", "weighted"] = Field(
        default="least_load",
        description="Which replica is taken: least_load, of two picked at random the one with less to do for its weight "
        "and speed; round_robin, in turn, whatever their weights; or weighted, at random by weight.",
    )
    api_key: VisibleSecret | None = Field(
        default=None, description="The gateway's key at this upstream; absent: none is sent. Give it as ${VARIABLE}."
    )
    organization: HeaderText | None = Field(
        default=None, description="Value of the openai-organization header; absent: none."
    )
    project: HeaderText | None = Field(default=None, description="Value of the openai-project header; absent: none.")
    azure: Azure | None = Field(
        default=None, description="Azure's form of OpenAI, for kind openai; absent: OpenAI's own."
    )
    profile: Literal["vllm_backend", "tensorrtllm", "python"] = Field(
        default="python", description="For kind triton: which names the model's tensors have."
    )
    template: FilePath | None = Field(
        default=None,
        description="For kind triton: the model's Hugging Face folder, or a .jinja file, by which messages become a prompt; "
        "absent: completions are served, and chat is not.",
    )
    tensors: dict[TensorMeaning, TensorName | None] = Field(
        default={},
        description="For kind triton: names of tensors in place of the profile's, by what they mean; null: the model has "
        "none for that.",
    )
    max_tokens: Count = Field(
        default=1024, description="For kind triton: tokens that an answer may have where the caller sets no limit."
    )
    cumulative: bool = Field(
        default=False,
        description="For kind triton: whether each response holds all of the text so far, and not only what is new.",
    )
    timeouts: Timeouts = Field(
        default=Timeouts(),
        description="Timeouts of this upstream; what is absent here is as in the top-level timeouts.",
    )
    retry: Retry = Field(
        default=Retry(), description="Retries of calls that begin here; what is absent is as in the top-level retry."
    )
    breaker: Breaker = Field(
        default=Breaker(), description="When a replica is left out; what is absent is as in the top-level breaker."
    )
    concurrency: Concurrency = Field(default=Concurrency(), description="How many calls this upstream gets at once.")
    health: Health = Field(
        default=Health(), description="How replicas are asked, between calls, whether they are well."
    )
    load: Load = Field(default=Load(), description="How the engines say how much they have to do.")
    transport: TransportConfig = Field(default=TransportConfig(), description="The connections to this upstream.")

    @property
    def replicas(self) -> tuple[tuple[str, float], ...]:
        """Base URL, without a slash at the end, and weight of each, whichever of `url` and `urls` was given."""
        if self.url is not None:
            return ((self.url, 1.0),)
        return tuple((replica.url, replica.weight) for replica in self.urls)

    def merged(self, timeouts: Timeouts, retry: Retry, breaker: Breaker) -> "Upstream":
        """What holds for this upstream where the top level says `timeouts`, `retry` and `breaker`.

        A `concurrency.limit` that was not said is never above the number of connections.
        """
        concurrency = self.concurrency
        if (limit := min(concurrency.limit, self.transport.max_connections)) != concurrency.limit:
            concurrency = concurrency.model_copy(update={"limit": limit})
        return self.model_copy(
            update={
                "timeouts": self.timeouts.over(timeouts),
                "retry": self.retry.over(retry),
                "breaker": self.breaker.over(breaker),
                "concurrency": concurrency,
            }
        )
