"""What settings say together: one name used twice, an upstream that is not there, two ways to say one thing.

It reads plain data and skips what does not have the shape that it looks for, so that these mistakes are told in the
same breath as those of shape. Pure: it must not know pydantic, YAML or files, and never puts a value in a message.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.config.mistake import Mistake, Place

_FALSE = {"false", "f", "no", "n", "off", "0"}


def contradictions(given: object) -> Iterator[Mistake]:
    """Each place where a config contradicts itself, and what is wrong there."""
    if not isinstance(given, Mapping):
        return
    config: Mapping[str, Any] = given
    upstreams = _mapping(config.get("upstreams"))
    yield from _server(_mapping(config.get("server")))
    yield from _auth(config.get("auth", {}))
    for name, upstream in upstreams.items():
        if isinstance(upstream, Mapping):
            yield from _upstream(("upstreams", name), upstream)
    for name, model in _mapping(config.get("models")).items():
        yield from _model(("models", name), _mapping(model), upstreams)


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


def _upstream(place: Place, upstream: Mapping[str, Any]) -> Iterator[Mistake]:
    single, several = upstream.get("url") is not None, bool(upstream.get("urls"))
    if single and several:
        yield Mistake((*place, "urls"), "give either url or urls")
    if not single and not several:
        yield Mistake((*place, "url"), "required: give url, or urls for several replicas")
    for later, earlier in _repeats([str(url).rstrip("/") for url in _sequence(upstream.get("urls"))]):
        yield Mistake((*place, "urls", later), f"the same URL as urls[{earlier}]")
    transport = _mapping(upstream.get("transport"))
    if transport.get("client_key") is not None and transport.get("client_cert") is None:
        yield Mistake((*place, "transport", "client_key"), "needs client_cert")
    if transport.get("proxy") is not None and transport.get("engine", "own") == "own":
        yield Mistake((*place, "transport", "proxy"), "needs engine: httpx")


def _model(place: Place, model: Mapping[str, Any], upstreams: Mapping[str, Any]) -> Iterator[Mistake]:
    targets = [_mapping(target) for target in _sequence(model.get("targets"))]
    for index, target in enumerate(targets):
        name = target.get("upstream")
        if isinstance(name, str) and name not in upstreams:
            yield Mistake((*place, "targets", index, "upstream"), "no upstream has this name")
    if targets and all(_nothing(target.get("weight", 1)) for target in targets):
        yield Mistake((*place, "targets"), "at least one target needs a weight above 0")


def _nothing(weight: object) -> bool:
    try:
        return float(str(weight)) == 0
    except ValueError:
        return False


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
