"""What can be asked for by name: the configured models, and what the upstreams behind a pattern say that they have.

A question that costs nothing and may be asked often; an upstream that does not answer it is left out, and nobody fails.
"""

import asyncio

import httpx
import orjson

from gateway.fleet import Fleet, Route, Upstream
from gateway.transport import PreparedRequest

_PATIENCE = 5.0  # seconds for the upstreams together
_LARGEST_LIST = 4 << 20


async def catalogue(fleet: Fleet) -> dict[str, str]:
    """Names, and for each the upstream that it comes from, configured ones first."""
    names = {name: route.targets[0].upstream.name for name, route in fleet.routes.items() if not name.endswith("*")}
    patterns = [route for name, route in fleet.routes.items() if name.endswith("*")]
    lists = await asyncio.gather(*(_listed(target.upstream) for route in patterns for target in route.targets[:1]))
    for route, listed in zip(patterns, lists, strict=True):
        names |= _served(fleet, route, listed, names)
    return names


def _served(fleet: Fleet, route: Route, listed: list[str], known: dict[str, str]) -> dict[str, str]:
    owner = route.targets[0].upstream.name
    return {name: owner for name in listed if name not in known and fleet.resolve(name) is route}


async def _listed(upstream: Upstream) -> list[str]:
    replica = next((one for one in upstream.replicas if not one.out), upstream.replicas[0])
    if (destination := replica.endpoint.models()) is None:
        return []
    request = PreparedRequest(destination, [], b"", {"timeout": upstream.plain_timeout})
    try:
        async with asyncio.timeout(_PATIENCE):
            response = await upstream.transport.handle_async_request(request)
            try:
                return _ids(await _body(response)) if response.status_code == 200 else []
            finally:
                await response.aclose()
    except (httpx.HTTPError, TimeoutError):
        return []


async def _body(response: httpx.Response) -> bytes:
    parts: list[bytes] = []
    async for part in response.aiter_raw():
        parts.append(part)
        if sum(map(len, parts)) > _LARGEST_LIST:
            return b""
    return b"".join(parts)


def _ids(body: bytes) -> list[str]:
    try:
        listed = orjson.loads(body)["data"]
        return [model["id"] for model in listed if isinstance(model["id"], str)]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return []
