"""Puts the rooms together: settings in, a Gateway out.

Everything is an argument and nothing is global, so that two of them can live in one process and a test can swap any part.
"""

import asyncio
import random
import time
from collections.abc import Sequence
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
from gateway.assembly import Watcher, build_fleet, readings
from gateway.call import Clock, Principal
from gateway.fleet import Fleet
from gateway.flow.dispatch import Dispatch
from gateway.flow.gate import Gate
from gateway.observe.lag import LoopLag
from gateway.observe.log import LineWriter
from gateway.observe.metrics import Metrics
from gateway.observe.record import Recorder


@dataclass(frozen=True)
class Gateway:
    """What is served: `api` on the API port, `admin` on the admin port; and what whoever serves them needs.

    `watchers` are to be run beside.
    """

    api: Edge
    admin: FastAPI
    health: Health
    fleet: Fleet
    metrics: Metrics
    limits: Limits
    watchers: Sequence[Watcher]


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
    chance = rng or random.Random()  # noqa: S311 - it spreads load, and keeps no secret
    fleet, watchers = build_fleet(settings, transport, chance, clock)
    health = Health()
    metrics = Metrics(
        inflight=lambda: len(edge.open),
        upstreams=lambda: list(readings(fleet, clock())),
        dropped=lambda: 0 if writer is None else writer.dropped,
    )
    openai = OpenAI(fleet, Dispatch(chance, clock), clock, started_at=int(_wall_time()))
    edge = Edge(_endpoints(openai), health, _gate(settings.auth), Recorder(metrics, logger).finish, clock)
    limits = Limits(**settings.server.limits.values())
    watchers.append(LoopLag(metrics.loop_lag, clock, asyncio.sleep))
    return Gateway(edge, create_admin(metrics.page, health), health, fleet, metrics, limits, watchers)


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
