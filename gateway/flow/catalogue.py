"""What can be asked for by name: the configured models, and what the upstreams behind a pattern say that they have.

A question that costs nothing and may be asked often; an upstream that does not answer it is left out, and nobody fails.
"""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

import httpx
import orjson

from gateway.fleet import Fleet, Route, Upstream
from gateway.transport import PreparedRequest

_PATIENCE = 5.0  # seconds for the upstreams together
_LARGEST_LIST = 4 << 20


class Listed(NamedTuple):
    """`owner`: the upstream that it comes from. `parent`: the model that it is an adapter (LoRA) of, in that upstream's words."""

    owner: str
    parent: str | None = None


async def catalogue(fleet: Fleet) -> dict[str, Listed]:
    """What there is, by name, configured names first."""
    names = {
        name: Listed(route.targets[0].upstream.name) for name, route in fleet.routes.items() if not name.endswith("*")
    }
    patterns = [route for name, route in fleet.routes.items() if name.endswith("*")]
    lists = await asyncio.gather(*(_listed(target.upstream) for route in patterns for target in route.targets[:1]))
    for route, listed in zip(patterns, lists, strict=True):
        names |= _served(fleet, route, listed, names)
    return names


def _served(
    fleet: Fleet, route: Route, listed: Mapping[str, str | None], known: Mapping[str, Listed]
) -> dict[str, Listed]:
    owner = route.targets[0].upstream.name
    return {
        name: Listed(owner, parent)
        for name, parent in listed.items()
        if name not in known and fleet.resolve(name) is route
    }


async def _listed(upstream: Upstream) -> dict[str, str | None]:
    """What it lists, each with its parent."""
    replica = next((one for one in upstream.replicas if not one.out), upstream.replicas[0])
    if (destination := replica.endpoint.models()) is None:
        return {}
    request = PreparedRequest(destination, [], b"", {"timeout": upstream.plain_timeout})
    try:
        async with asyncio.timeout(_PATIENCE):
            response = await upstream.transport.handle_async_request(request)
            try:
                return _named(await _body(response)) if response.status_code == 200 else {}
            finally:
                await response.aclose()
    except (httpx.HTTPError, TimeoutError):
        return {}


async def _body(response: httpx.Response) -> bytes:
    parts: list[bytes] = []
    async for part in response.aiter_raw():
        parts.append(part)
        if sum(map(len, parts)) > _LARGEST_LIST:
            return b""
    return b"".join(parts)


def _named(body: bytes) -> dict[str, str | None]:
    try:
        listed = orjson.loads(body)["data"]
        return {model["id"]: _parent(model) for model in listed if isinstance(model["id"], str)}
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return {}


def _parent(model: Mapping[str, object]) -> str | None:
    parent = model.get("parent")
    return parent if isinstance(parent, str) and parent else None
