"""Makes the fleet that the settings describe. The only place that knows both their shapes."""

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import httpx
import structlog

from gateway import config, templates
from gateway.admission import ConcurrencySettings
from gateway.call import Clock
from gateway.dialects import DIALECTS, Dialect
from gateway.dialects.azure import Azure
from gateway.discovery import Discovery, system_lookup
from gateway.fleet import Endpoint, Fleet, Hedge, Replica, Route, Rules, Target, Timeouts, Upstream
from gateway.health import HealthChecks, HealthSettings
from gateway.kinds import KINDS, UpstreamKind
from gateway.load import LoadSettings, LoadWatch
from gateway.observe.upstreams import EngineReading, ReplicaReading, UpstreamReading
from gateway.policy.balance import BALANCES
from gateway.policy.breaker import Breaker, BreakerSettings
from gateway.policy.retry import RetrySettings
from gateway.transport import TransportSettings, open_transport
from gateway.transport.kserve import MissingExtra, open_kserve
from gateway.transport.request import Origin
from gateway.transport.resolver import DaemonThreads


class Watcher(Protocol):
    """What goes on beside the calls, for as long as the gateway serves."""

    async def run(self) -> None:
        """Watch, until cancelled."""


def build_fleet(
    settings: config.Settings, transport: httpx.AsyncBaseTransport | None, rng: random.Random, clock: Clock
) -> tuple[Fleet, list[Watcher]]:
    """The fleet, and what watches it. `transport` is the way out for all upstreams, instead of an engine for each."""
    builders = {name: _Builder(name, upstream, transport, rng, clock) for name, upstream in settings.upstreams.items()}
    fleet = _fleet(settings, builders)
    watchers = [watcher for name, builder in builders.items() for watcher in builder.watchers(fleet.upstreams[name])]
    return fleet, watchers


def _fleet(settings: config.Settings, builders: dict[str, "_Builder"]) -> Fleet:
    upstreams = {name: builder.upstream() for name, builder in builders.items()}
    routes = {name: _route(name, model, upstreams) for name, model in settings.models.items()}
    for name, model in settings.models.items():
        for fallback in model.fallbacks:
            if (found := config.resolve(fallback, settings.models)) is not None:
                routes[name].fall_back(routes[found], fallback)
    return Fleet(upstreams, list(routes.values()))


def _route(name: str, model: config.Model, upstreams: dict[str, Upstream]) -> Route:
    targets = [Target(upstreams[target.upstream], target.model, target.weight) for target in model.targets]
    if model.hedge is None:
        return Route(name, targets)
    return Route(name, targets, Hedge(None if model.hedge.after == "p95" else model.hedge.after))


class _Builder:
    """What the replicas of one upstream have in common."""

    def __init__(
        self,
        name: str,
        settings: config.Upstream,
        transport: httpx.AsyncBaseTransport | None,
        rng: random.Random,
        clock: Clock,
    ) -> None:
        self._name = name
        self._settings = settings
        try:
            self._dialect = dialect_of(settings)
            self._transport = transport or _transport(settings)
        except templates.TemplateError as failure:
            raise config.ConfigError([f"upstreams.{name}.template: {failure}"]) from None
        except MissingExtra as failure:
            raise config.ConfigError([f"upstreams.{name}.url: {failure}"]) from None
        self._rng = rng
        self._clock = clock
        self._headers = list(_headers(self._dialect, settings))
        breaker = settings.breaker.values()
        self._slow_start: float = breaker.pop("slow_start")
        self._breaker = BreakerSettings(**breaker)

    def upstream(self) -> Upstream:
        """The upstream, with the replicas that its settings name."""
        settings = self._settings
        # One refusal is enough: the next request would carry the same key.
        key = BreakerSettings(failures=1, ejection=self._breaker.ejection, max_ejection=self._breaker.max_ejection)
        rules = Rules(
            Timeouts(**settings.timeouts.values()),
            RetrySettings(**settings.retry.values()),
            ConcurrencySettings(**settings.concurrency.values()),
            BALANCES[settings.balance](),
            Breaker(key, self._rng.random),
            KINDS[settings.kind].refused,
        )
        replicas = [self.replica(url, weight=weight) for url, weight in settings.replicas]
        for named in (lambda url: url.partition("://")[2], str):
            if len({replica.name for replica in replicas}) < len(replicas):  # their series would be one
                for replica, (url, _) in zip(replicas, settings.replicas, strict=True):
                    replica.name = named(url)
        return Upstream(self._name, self._dialect, replicas, self._transport, rules)

    def watchers(self, upstream: Upstream) -> Iterator[Watcher]:
        """What keeps the upstream's replicas up to date."""
        settings, chance = self._settings, self._rng.random
        logger = structlog.get_logger("gateway.fleet")
        if settings.discovery == "dns" and settings.url is not None:
            origin = Origin.of(httpx.URL(settings.url))
            # A resolver of its own: a name server that hangs must hold up nobody else.
            lookup = system_lookup(origin.host, origin.port, DaemonThreads(1))
            make = partial(self.replica, settings.url)
            yield Discovery(upstream, make, lookup=lookup, sleep=asyncio.sleep, chance=chance, logger=logger)
        health = settings.health.values()
        enabled, path = health.pop("enabled"), health.pop("path")
        if self._dialect.checked if enabled is None else enabled:
            rules = HealthSettings(**health)
            yield HealthChecks(
                upstream,
                lambda replica: replica.endpoint.health(path),
                rules,
                sleep=asyncio.sleep,
                chance=chance,
                logger=logger,
            )
        figures = KINDS[settings.kind].figures
        if figures is not None and settings.load.enabled is not False:
            look = LoadSettings(settings.load.path, settings.load.interval, settings.load.port)
            yield LoadWatch(upstream, figures, look, clock=self._clock, sleep=asyncio.sleep, chance=chance)

    def replica(self, url: str, address: str | None = None, weight: float = 1.0) -> Replica:
        """One more of them."""
        endpoint = Endpoint(url, self._dialect, self._headers, address)
        breaker = Breaker(self._breaker, self._rng.random)
        return Replica(endpoint, breaker, self._clock, self._slow_start, weight)


def dialect_of(settings: config.Upstream) -> Dialect:
    """What an upstream speaks: by its kind, and by the settings that only its kind has. Raises TemplateError."""
    if settings.azure is not None:
        return Azure(**settings.azure.values())
    return DIALECTS[settings.kind](**_OF_A_KIND.get(settings.kind, _nothing)(settings))


def _transport(settings: config.Upstream) -> httpx.AsyncBaseTransport:
    """The way to an upstream, by the scheme of its URLs. Raises MissingExtra."""
    grpc = settings.replicas[0][0].startswith("grpc")
    return (open_kserve if grpc else open_transport)(TransportSettings(**settings.transport.values()))


def _nothing(_: config.Upstream) -> dict[str, Any]:
    return {}


def _tensors(settings: config.Upstream) -> dict[str, Any]:
    return {
        "profile": settings.profile,
        "tensors": settings.tensors,
        "template": None if settings.template is None else templates.load(Path(settings.template)),
        "max_tokens": settings.max_tokens,
        "cumulative": settings.cumulative,
        "mint": lambda: (uuid.uuid4().hex, int(time.time())),  # noqa: TID251 - shown to people
    }


_OF_A_KIND: dict[UpstreamKind, Callable[[config.Upstream], dict[str, Any]]] = {"triton": _tensors}
"""What a kind's dialect is told of its settings, where it has any."""


def _headers(dialect: Dialect, upstream: config.Upstream) -> Iterable[tuple[str, str]]:
    yield from dialect.headers(None if upstream.api_key is None else upstream.api_key.get_secret_value())
    for header, value in (("openai-organization", upstream.organization), ("openai-project", upstream.project)):
        if value is not None:
            yield header, value


def _engine(replica: Replica) -> EngineReading | None:
    load = replica.load
    return None if load is None else EngineReading(load.running, load.waiting, load.kv, load.batch)


def readings(fleet: Fleet, now: float) -> Iterable[UpstreamReading]:
    """How the fleet stands, for the metrics."""
    for upstream in fleet.upstreams.values():
        replicas = [
            ReplicaReading(
                replica.name, replica.standing(now), replica.inflight, _engine(replica), replica.latency.read(now)
            )
            for replica in upstream.replicas
        ]
        yield UpstreamReading(
            upstream.name,
            replicas,
            queued=len(upstream.queue),
            budget=upstream.budget.left(now),
            panics=upstream.panics,
            key_refused=not upstream.key.closed,
            dry=upstream.dry and not upstream.key.closed,
        )
