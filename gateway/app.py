"""Puts the rooms together: settings in, a Gateway out.

Everything is an argument and nothing is global, so that two of them can live in one process and a test can swap any part.
"""

import random
import time
from collections.abc import Iterable
from dataclasses import dataclass

import httpx
from fastapi import FastAPI
from structlog.typing import FilteringBoundLogger

from gateway import config
from gateway.api.admin import create_admin
from gateway.api.edge import Edge, Endpoint
from gateway.api.limits import Limits
from gateway.api.openai import OpenAI
from gateway.api.ops import Health
from gateway.call import Clock, Principal
from gateway.dialects import DIALECTS
from gateway.fleet import Fleet, Replica, Route, Target, Timeouts, Upstream
from gateway.flow.dispatch import Dispatch
from gateway.flow.gate import Gate
from gateway.observe.log import LineWriter
from gateway.observe.metrics import Metrics
from gateway.observe.record import Recorder
from gateway.transport import TransportSettings, open_transport


@dataclass(frozen=True)
class Gateway:
    """What is served: `api` on the API port, `admin` on the admin port; and what whoever serves them needs."""

    api: Edge
    admin: FastAPI
    health: Health
    fleet: Fleet
    metrics: Metrics
    limits: Limits


def create_gateway(
    settings: config.Settings,
    *,
    logger: FilteringBoundLogger,
    writer: LineWriter | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    rng: random.Random | None = None,
    clock: Clock = time.perf_counter,
) -> Gateway:
    """Assemble. `transport` is the way out for all upstreams, instead of an engine for each; `clock` gives seconds."""
    fleet = _fleet(settings, transport)
    health = Health()
    metrics = Metrics(
        inflight=lambda: len(edge.open),
        load=lambda: _load(fleet),
        dropped=lambda: 0 if writer is None else writer.dropped,
    )
    openai = OpenAI(fleet, Dispatch(rng or random.Random(), clock), clock, started_at=int(_wall_time()))  # noqa: S311
    edge = Edge(_endpoints(openai), health, _gate(settings.auth), Recorder(metrics, logger).finish, clock)
    limits = Limits(**settings.server.limits.values())
    return Gateway(edge, create_admin(metrics.registry, health), health, fleet, metrics, limits)


def _wall_time() -> float:
    return time.time()  # noqa: TID251 - shown to people


def _endpoints(openai: OpenAI) -> dict[str, Endpoint]:
    return {
        "/v1/chat/completions": Endpoint("chat", "POST", openai.chat),
        "/v1/completions": Endpoint("completions", "POST", openai.completions),
        "/v1/embeddings": Endpoint("embeddings", "POST", openai.embeddings),
        "/v1/models": Endpoint("models", "GET", openai.models),
        "/v1/models/": Endpoint("models", "GET", openai.model, prefix=True),
    }


def _gate(auth: config.Auth) -> Gate:
    keys = {key.key.get_secret_value(): Principal(key.name, key.models) for key in auth.keys}
    return Gate(keys, required=auth.required)


def _fleet(settings: config.Settings, transport: httpx.AsyncBaseTransport | None) -> Fleet:
    upstreams = {name: _upstream(name, upstream, transport) for name, upstream in settings.upstreams.items()}
    routes = [
        Route(name, [Target(upstreams[target.upstream], target.model, target.weight) for target in model.targets])
        for name, model in settings.models.items()
    ]
    return Fleet(upstreams, routes)


def _upstream(name: str, upstream: config.Upstream, transport: httpx.AsyncBaseTransport | None) -> Upstream:
    dialect = DIALECTS[upstream.kind]
    headers = [*dialect.headers(None if upstream.api_key is None else upstream.api_key.get_secret_value())]
    for header, value in (("openai-organization", upstream.organization), ("openai-project", upstream.project)):
        if value is not None:
            headers.append((header, value))
    return Upstream(
        name,
        dialect,
        [Replica(url, dialect, headers) for url in upstream.replicas],
        transport or open_transport(TransportSettings(**upstream.transport.values())),
        Timeouts(**upstream.timeouts.values()),
    )


def _load(fleet: Fleet) -> Iterable[tuple[str, str, int]]:
    for upstream in fleet.upstreams.values():
        for replica in upstream.replicas:
            yield upstream.name, replica.name, replica.inflight
