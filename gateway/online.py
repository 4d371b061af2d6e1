"""Asks upstreams what they serve, before any call does: for `gateway check --online`, and for the start without a file.

Each replica is asked for its list of models, with the upstream's key; one that has none to give is asked how it is. What is
told of them is the gateway's own words: nothing of an answer but a number is repeated, and no key. Must not serve anything.
"""

import asyncio
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import httpx
import orjson

from gateway import config
from gateway.assembly import build_fleet
from gateway.fleet import Replica, Upstream
from gateway.kinds import KINDS
from gateway.transport import PreparedRequest, ResolveError, TlsError
from gateway.transport.whole import whole

PATIENCE = 5.0
"""Seconds for each replica, all of which are asked at once."""

LARGEST = 4 << 20
"""Bytes of a list."""

_LONGEST_NAME = 256  # characters
_UNWELL = frozenset((400, 500, 503))  # to the question how it is; Triton says the first


class Finding(NamedTuple):
    """What came of asking one replica: the models that it lists, or what is wrong. Neither: it is well, and lists none."""

    upstream: str
    replica: str
    models: frozenset[str] | None = None
    problem: str = ""


def checked(settings: config.Settings, transport: httpx.AsyncBaseTransport | None = None) -> list[Finding]:
    """Ask every replica of every upstream. `transport` is the way out, instead of an engine for each."""
    return asyncio.run(_checked(settings, transport))


def listing(upstream: config.Upstream) -> list[str]:
    """The models that an upstream's replicas list, as many of them as answer. Raises ConfigError if none does."""
    findings = checked(config.Settings.model_validate(_alone(upstream)))
    names = {name for finding in findings for name in finding.models or ()}
    if not names:
        told = dict.fromkeys(f"{finding.replica} {finding.problem or 'lists no models'}" for finding in findings)
        raise config.ConfigError([f"does not tell which models it has: {'; '.join(told)}"])
    return sorted(names)


def told(settings: config.Settings, findings: Iterable[Finding]) -> Iterator[tuple[bool, str]]:
    """A line for each finding and for each model that is not there, and whether it is a failure or a warning."""
    wanted = _wanted(settings)
    for finding in findings:
        place = f"{finding.upstream} at {finding.replica}:"
        if finding.problem:
            yield True, f"{place} {finding.problem}"
        elif finding.models is None:
            yield False, f"{place} ok"
        else:
            count = len(finding.models)
            yield False, f"{place} ok, {count} model{'' if count == 1 else 's'}"
            if missing := sorted(wanted.get(finding.upstream, set()) - finding.models):
                yield False, f"{place} warning: does not list {', '.join(missing)}"


def _alone(upstream: config.Upstream) -> dict[str, object]:
    return {
        "auth": {"required": False},
        "upstreams": {"vllm": upstream},
        "models": {"*": {"targets": [{"upstream": "vllm"}]}},
    }


def _wanted(settings: config.Settings) -> dict[str, set[str]]:
    """By upstream, the names of models that calls will ask it for; what a pattern takes is not known."""
    wanted: dict[str, set[str]] = {}
    for asked, route in _asked(settings.models):
        for target in settings.models[route].targets:
            name = target.model or asked
            if target.weight and not name.endswith("*"):
                wanted.setdefault(target.upstream, set()).add(name)
    return wanted


def _asked(models: Mapping[str, config.Model]) -> Iterator[tuple[str, str]]:
    """Each name that is asked for, by a caller or as a fallback, and the model that takes it."""
    for name, model in models.items():
        yield name, name
        yield from ((other, found) for other in model.fallbacks if (found := config.resolve(other, models)) is not None)


async def _checked(settings: config.Settings, transport: httpx.AsyncBaseTransport | None) -> list[Finding]:
    fleet, _ = build_fleet(settings, transport, random.Random(), time.monotonic)  # noqa: S311 - it keeps no secret
    try:
        asking = [
            _find(upstream, replica, settings.upstreams[name])
            for name, upstream in fleet.upstreams.items()
            for replica in upstream.replicas
        ]
        return await asyncio.gather(*asking)
    finally:
        await fleet.aclose()


async def _find(upstream: Upstream, replica: Replica, settings: config.Upstream) -> Finding:
    endpoint = replica.endpoint
    listed = endpoint.models()
    request = PreparedRequest(listed or endpoint.health(None), [], b"", {"timeout": {}})
    try:
        async with asyncio.timeout(PATIENCE):
            response = await upstream.transport.handle_async_request(request)
            try:
                body = await whole(response, LARGEST) if response.status_code == 200 else None
            finally:
                await response.aclose()
    except (httpx.HTTPError, TimeoutError) as failure:
        return Finding(upstream.name, replica.name, problem=_unreachable(failure))
    if problem := _refused(response.status_code, settings):
        unwell = "not well: " if listed is None and response.status_code in _UNWELL else ""
        return Finding(upstream.name, replica.name, problem=f"{unwell}{problem}")
    if listed is None:
        return Finding(upstream.name, replica.name)
    names = _names(body)
    problem = "answers, but not with a list of models" if names is None else ""
    return Finding(upstream.name, replica.name, names, problem)


def _names(body: bytes | None) -> frozenset[str] | None:
    try:
        listed = orjson.loads(body or b"")["data"]
        names = frozenset(model["id"] for model in listed)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return names if all(isinstance(name, str) and len(name) <= _LONGEST_NAME for name in names) else None


def _unreachable(failure: Exception) -> str:
    if isinstance(failure, TlsError):
        return str(failure)
    if isinstance(failure, ResolveError):
        return "unreachable: the host name has no address"
    if isinstance(failure, TimeoutError | httpx.TimeoutException):
        return f"unreachable: no answer in {PATIENCE:g} s"
    if isinstance(failure, httpx.ConnectError):
        return f"unreachable: {str(failure).removeprefix('no connection: ') or 'no connection'}"
    return f"does not answer in HTTP: {type(failure).__name__}"


def _refused(status: int, settings: config.Upstream) -> str:
    """What is wrong, if anything, by the status of an answer."""
    if 200 <= status < 300:
        return ""
    if status in {401, 403}:
        if settings.api_key is None:
            return f"refused: {status}, and it has no api_key"
        hint = KINDS[settings.kind].refused
        return f"refused: {status}, the key is not accepted{f' ({hint})' if hint else ''}"
    if status == 404 or 300 <= status < 400:
        return f"answers {status}: is the URL right, with the whole path?"
    return f"answers {status}"
