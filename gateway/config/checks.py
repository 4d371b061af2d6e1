"""What settings say together: one name used twice, an upstream that is not there, two ways to say one thing.

It reads plain data and skips what does not have the shape that it looks for, so that these mistakes are told in the
same breath as those of shape. Pure: it must not know pydantic, YAML or files, and never puts a value in a message.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from gateway.config.mistake import Mistake, Place
from gateway.kinds import KINDS, Traits

_GRPC = ("grpc://", "grpcs://")
_TRAITS: Mapping[str, Traits] = {str(kind): traits for kind, traits in KINDS.items()}
_FALSE = {"false", "f", "no", "n", "off", "0"}


def contradictions(given: object) -> Iterator[Mistake]:
    """Each place where a config contradicts itself, and what is wrong there."""
    if not isinstance(given, Mapping):
        return
    config: Mapping[str, Any] = given
    upstreams, models = _mapping(config.get("upstreams")), _mapping(config.get("models"))
    yield from _server(_mapping(config.get("server")))
    yield from _auth(config.get("auth", {}))
    yield from _retry_and_breaker((), config)
    for name, upstream in upstreams.items():
        if isinstance(upstream, Mapping):
            yield from _upstream(("upstreams", name), upstream)
    for name, model in models.items():
        yield from _targets(("models", name, "targets"), _mapping(model), upstreams)
        yield from _fallbacks(("models", name, "fallbacks"), _mapping(model), models)


def resolve(model: str, names: Iterable[str]) -> str | None:
    """Which of the configured `names` a call for `model` goes by: its own, else the longest pattern, else None."""
    patterns = [name for name in names if name == model or (name.endswith("*") and model.startswith(name[:-1]))]
    return max(patterns, key=lambda name: (name == model, len(name)), default=None)


def _server(server: Mapping[str, Any]) -> Iterator[Mistake]:
    port = str(server.get("port", 8080))
    if port != "0" and port == str(server.get("admin_port", 8081)):
        place = "admin_port" if "admin_port" in server else "port"
        yield Mistake(("server", place), "port and admin_port must not be the same")


def _auth(auth: object) -> Iterator[Mistake]:
    if not isinstance(auth, Mapping):
        return
    keys = auth.get("keys", ())
    if isinstance(keys, Sequence) and not keys and str(auth.get("required", True)).lower() not in _FALSE:
        yield Mistake(("auth", "keys"), "auth is required and there is no key: add one, or set auth.required to false")
    keys = [_mapping(key) for key in _sequence(keys)]
    for field, thing in (("name", "name"), ("key", "key")):
        for later, earlier in _repeats([key.get(field) for key in keys]):
            yield Mistake(("auth", "keys", later, field), f"the same {thing} as auth.keys[{earlier}]")


def _retry_and_breaker(place: Place, section: Mapping[str, Any]) -> Iterator[Mistake]:
    for name, lower, upper in (("retry", "base", "cap"), ("breaker", "ejection", "max_ejection")):
        said = _mapping(section.get(name))
        least, most = _number(said.get(lower)), _number(said.get(upper))
        if least is not None and most is not None and most < least:
            yield Mistake((*place, name, upper), f"must not be less than {lower}")


def _upstream(place: Place, upstream: Mapping[str, Any]) -> Iterator[Mistake]:
    yield from _addresses(place, upstream)
    yield from _kind(place, upstream)
    yield from _discovery(place, upstream)
    yield from _retry_and_breaker(place, upstream)
    transport = _mapping(upstream.get("transport"))
    if transport.get("client_key") is not None and transport.get("client_cert") is None:
        yield Mistake((*place, "transport", "client_key"), "needs client_cert")
    if transport.get("proxy") is not None and transport.get("engine", "own") == "own":
        yield Mistake((*place, "transport", "proxy"), "needs engine: httpx")
    limit = _number(_mapping(upstream.get("concurrency")).get("limit"))
    connections = _number(transport.get("max_connections", 1000))
    if limit is not None and connections is not None and limit > connections:
        default = "" if "max_connections" in transport else ", which is 1000 unless given"
        yield Mistake((*place, "concurrency", "limit"), f"must be at most transport.max_connections{default}")


def _addresses(place: Place, upstream: Mapping[str, Any]) -> Iterator[Mistake]:
    url, several = upstream.get("url"), upstream.get("urls")
    if url is not None and several:
        yield Mistake((*place, "urls"), "give either url or urls")
    if url is None and not several:
        yield Mistake((*place, "url"), "required: give url, or urls for several replicas")
    entries = [entry if isinstance(entry, Mapping) else {"url": entry} for entry in _sequence(several)]
    urls = [entry.get("url") for entry in entries]
    for later, earlier in _repeats([url.rstrip("/") if isinstance(url, str) else None for url in urls]):
        yield Mistake((*place, "urls", later), f"the same URL as urls[{earlier}]")
    for index, entry in enumerate(entries):
        if "weight" in entry and upstream.get("balance") == "round_robin":
            yield Mistake((*place, "urls", index, "weight"), "needs balance: least_load or weighted")


def _kind(place: Place, upstream: Mapping[str, Any]) -> Iterator[Mistake]:
    """What is said that goes only with another kind."""
    kind = upstream.get("kind")
    traits = _TRAITS.get(kind) if isinstance(kind, str) else None
    if traits is None:
        return
    for other, its in _TRAITS.items():
        for setting in sorted(its.settings - traits.settings):
            if upstream.get(setting) is not None:
                yield Mistake((*place, setting), f"needs kind: {other}")
    yield from _schemes(place, upstream, traits)
    yield from _grpc(place, upstream)
    enabled = _mapping(upstream.get("load")).get("enabled")
    if traits.figures is None and enabled is not None and str(enabled).lower() not in _FALSE:
        telling = [other for other, its in _TRAITS.items() if its.figures is not None]
        yield Mistake((*place, "load", "enabled"), f"needs kind: {', '.join(telling)}")
    for tensor in ("text_input", "text_output"):
        if _mapping(upstream.get("tensors")).get(tensor, tensor) is None:
            yield Mistake((*place, "tensors", tensor), "every model has this one: give its name")


def _schemes(place: Place, upstream: Mapping[str, Any], traits: Traits) -> Iterator[Mistake]:
    for where, url in _urls(upstream):
        scheme = url.partition("://")[0]
        kinds = [other for other, its in _TRAITS.items() if scheme in its.schemes]
        if kinds and scheme not in traits.schemes:
            yield Mistake((*place, *where), f"{scheme}:// needs kind: {', '.join(kinds)}")
        elif upstream.get("azure") is not None and "/openai" in url:
            yield Mistake((*place, *where), "with azure it must be the resource's URL, the part before /openai")


def _grpc(place: Place, upstream: Mapping[str, Any]) -> Iterator[Mistake]:
    """What goes with HTTP only."""
    urls = [(where, url) for where, url in _urls(upstream) if url.startswith(_GRPC)]
    if urls and len(urls) < sum(1 for _ in _urls(upstream)):
        yield Mistake((*place, "urls"), "must be all grpc:// or all http://")
    for where, url in urls:
        if not re.fullmatch("[a-z]+://[^/]+:[0-9]+/?", url):
            yield Mistake((*place, *where), "a grpc:// URL has a host, a port and no path")
    if urls and upstream.get("discovery") == "dns":
        yield Mistake((*place, "discovery"), "dns needs an http:// or https:// URL")
    if urls and _mapping(upstream.get("transport")).get("engine") == "httpx":
        yield Mistake((*place, "transport", "engine"), "httpx needs an http:// or https:// URL")


def _urls(upstream: Mapping[str, Any]) -> Iterator[tuple[Place, str]]:
    """Each URL that is text, and where it stands."""
    given: list[tuple[Place, object]] = [(("url",), upstream.get("url"))]
    for index, entry in enumerate(_sequence(upstream.get("urls"))):
        given.append((("urls", index), entry))
        given.append((("urls", index, "url"), _mapping(entry).get("url")))
    yield from ((where, url) for where, url in given if isinstance(url, str))


def _discovery(place: Place, upstream: Mapping[str, Any]) -> Iterator[Mistake]:
    if upstream.get("discovery") != "dns":
        return
    url = upstream.get("url")
    if upstream.get("urls"):
        yield Mistake((*place, "discovery"), "dns needs url, and not urls")
    elif isinstance(url, str) and _is_address(url):
        yield Mistake((*place, "discovery"), "dns needs a host name in url, and not an address")
    if _mapping(upstream.get("transport")).get("engine") == "httpx":
        yield Mistake((*place, "discovery"), "dns needs transport.engine: own")


def _is_address(url: str) -> bool:
    try:
        ip_address(urlsplit(url).hostname or "")
    except ValueError:
        return False
    return True


def _targets(place: Place, model: Mapping[str, Any], upstreams: Mapping[str, Any]) -> Iterator[Mistake]:
    targets = [_mapping(target) for target in _sequence(model.get("targets"))]
    for index, target in enumerate(targets):
        name = target.get("upstream")
        if isinstance(name, str) and name not in upstreams:
            yield Mistake((*place, index, "upstream"), "no upstream has this name")
    if targets and all(_number(target.get("weight", 1)) == 0 for target in targets):
        yield Mistake(place, "at least one target needs a weight above 0")


def _fallbacks(place: Place, model: Mapping[str, Any], models: Mapping[str, Any]) -> Iterator[Mistake]:
    fallbacks = _sequence(model.get("fallbacks"))
    for index, name in enumerate(fallbacks):
        if not isinstance(name, str):
            continue
        if name == place[1]:
            yield Mistake((*place, index), "a model can't fall back to itself")
        elif name.endswith("*"):
            yield Mistake((*place, index), "must be one model's name, and not a pattern")
        elif resolve(name, models) is None:
            yield Mistake((*place, index), "no model has this name, and no pattern takes it")
    for later, earlier in _repeats(fallbacks):
        yield Mistake((*place, later), f"the same model as fallbacks[{earlier}]")


def _number(given: object) -> float | None:
    """The number that was given as itself or as text, or None where there is none."""
    try:
        return float(str(given))
    except ValueError:
        return None


def _repeats(values: Sequence[object]) -> Iterator[tuple[int, int]]:
    """Index of each value that was there before, and index of the first one like it."""
    for index, value in enumerate(values):
        first = values.index(value)
        if value is not None and first < index:
            yield index, first


def _mapping(given: object) -> Mapping[str, Any]:
    return given if isinstance(given, Mapping) else {}


def _sequence(given: object) -> Sequence[Any]:
    return given if isinstance(given, (list, tuple)) else ()
