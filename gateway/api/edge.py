"""The outermost room of the API port: one record per call, and one rendering of every failure.

A plain ASGI application and the only thing around a stream. It finds the route by the path alone, in a table: a
framework's router costs a tenth of a request (docs/adr/0006). Must not know what endpoints do, nor what upstreams are.
"""

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import NamedTuple

import structlog
from starlette.types import Receive, Scope, Send

from gateway import errors
from gateway.api.caller import Caller
from gateway.api.ops import Health
from gateway.call import Clock, Exchange, Kind
from gateway.flow.answer import Answer
from gateway.flow.gate import Gate
from gateway.outcome import end_reason, judge

Finish = Callable[[Exchange], None]
Headers = list[tuple[bytes, bytes]]
Begin = Callable[[Exchange, Headers, str, str | None], None]

_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_random = random.Random()  # noqa: S311 - an id that nobody has to guess at, and chance that no test decides on
_LEFT = errors.CallerLeft("The caller left.")
_log = structlog.get_logger("gateway.edge")


class Endpoint(NamedTuple):
    """What serves a path. `prefix`: it serves what lies under the path too."""

    kind: Kind
    method: str
    handle: Callable[[Caller], Awaitable[None]]
    prefix: bool = False


class Edge:
    """The API port. Each path of `endpoints` also answers without its `/v1`.

    `begin`: who traces calls, if anybody does, is told of each with its headers, its method and its route.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        health: Health,
        gate: Gate,
        finish: Finish,
        clock: Clock,
        begin: Begin | None = None,
    ) -> None:
        self._begin = begin
        self._health = health
        self._gate = gate
        self._finish = finish
        self._clock = clock
        both = {**endpoints, **{path.removeprefix("/v1"): endpoint for path, endpoint in endpoints.items()}}
        self._exact = {path: endpoint for path, endpoint in both.items() if not endpoint.prefix}
        self._under = {path: endpoint for path, endpoint in both.items() if endpoint.prefix}
        self.open: set[Exchange] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; never raises."""
        path: str = scope["path"]
        if path in self._health.paths:
            await self._health(scope, receive, send)
            return
        endpoint = self._find(path)
        exchange = Exchange(
            _request_id(scope["headers"]), "unknown" if endpoint is None else endpoint.kind, self._clock()
        )
        if self._begin is not None:
            self._begin(exchange, scope["headers"], scope["method"], _route(path, endpoint))
        exchange.task = asyncio.current_task()
        self.open.add(exchange)
        if (on_disconnect := scope.get("extensions", {}).get("gateway.on_disconnect")) is not None:
            on_disconnect(partial(exchange.interrupt, _LEFT))
        answer = Answer(send, exchange, self._clock)
        error: errors.GatewayError | None = _LEFT
        try:
            error = await self._outcome(endpoint, scope, receive, answer, exchange)
            if error is not None and error is not _LEFT:
                await answer.fail(error)
        except (OSError, asyncio.CancelledError):
            error = _LEFT
        finally:
            self._settle(exchange, answer, error)

    async def _outcome(
        self, endpoint: Endpoint | None, scope: Scope, receive: Receive, answer: Answer, exchange: Exchange
    ) -> errors.GatewayError | None:
        """Serve, and turn whatever was raised into the one error that the caller, the log and the metrics are told of."""
        try:
            await self._serve(endpoint, scope, receive, answer, exchange)
        except asyncio.CancelledError:
            return None if answer.complete else self._interrupted(exchange)
        except errors.GatewayError as failure:
            return failure
        except OSError:
            return _LEFT  # what send() raises where nobody is there
        except Exception as failure:  # noqa: BLE001 - the last resort: it is logged, and told as a 500
            _log.error("unforeseen", request_id=exchange.request_id, error=type(failure).__name__, exc_info=failure)
            return errors.Internal(exchange.request_id)
        return None

    async def _serve(
        self, endpoint: Endpoint | None, scope: Scope, receive: Receive, answer: Answer, exchange: Exchange
    ) -> None:
        principal = self._gate.admit(scope["headers"])
        exchange.key_name = principal.name
        if endpoint is None:
            raise errors.NotFound("There is nothing at this path.")
        if scope["method"] != endpoint.method:
            message = f"This path takes {endpoint.method} only."
            raise errors.MethodNotAllowed(message, headers={"allow": endpoint.method})
        caller = Caller(scope["headers"], receive, answer, exchange, principal)
        if endpoint.prefix:
            caller.path_rest = scope["path"].split("/models/", 1)[1]
        await endpoint.handle(caller)

    def _find(self, path: str) -> Endpoint | None:
        if (endpoint := self._exact.get(path)) is not None:
            return endpoint
        return next(
            (found for prefix, found in self._under.items() if path.startswith(prefix) and path != prefix), None
        )

    def _interrupted(self, exchange: Exchange) -> errors.GatewayError:
        if exchange.interruption is None:
            return errors.ShuttingDown("The gateway is shutting down.")
        if exchange.task is not None:
            exchange.task.uncancel()
        return exchange.interruption

    def _settle(self, exchange: Exchange, answer: Answer, error: errors.GatewayError | None) -> None:
        self.open.discard(exchange)
        exchange.task = None
        exchange.outcome = judge(error)
        exchange.end_reason = end_reason(error)
        if not answer.complete:
            exchange.ended_at = self._clock()
        if error is not None:
            exchange.status = exchange.status or error.status
        self._finish(exchange)


def _route(path: str, endpoint: Endpoint | None) -> str | None:
    if endpoint is None:
        return None
    return path.partition("/models/")[0] + "/models/{id}" if endpoint.prefix else path


def _request_id(headers: Headers) -> str:
    for name, value in headers:
        if name == b"x-request-id" and _SANE_ID.fullmatch(value):
            return value.decode("ascii")
    return f"{_random.getrandbits(128):032x}"
