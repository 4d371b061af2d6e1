"""The ways in: a file, or the environment alone; and the way that mistakes are said.

A mistake is one line, `gateway.yaml:12: upstreams.openai.url: message`, and all of them come at once. Neither they nor
anything else here repeats a value. It must not know what a setting means.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import ValidationError

from gateway.config.checks import contradictions
from gateway.config.document import Data, Mistake, Place, read
from gateway.config.settings import Section, Server, Settings

FOUND = (Path("gateway.yaml"), Path("/etc/gateway/gateway.yaml"))
OPENAI_URL = "https://api.openai.com/v1"
_BYTES = 1024 * 1024


class ConfigError(Exception):
    """The config can't be used. `mistakes` has a line for each thing that is wrong; none of them repeats a value."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(self.mistakes))


def process_environment() -> Mapping[str, str]:
    """The environment of this process: asked for here and nowhere else, and handed down as an argument."""
    return os.environ  # noqa: TID251


def find(named: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The config file: the named one, else `GATEWAY_CONFIG`, else the first that exists of `FOUND`, else None."""
    if named is not None:
        return named
    if environ.get("GATEWAY_CONFIG"):
        return Path(environ["GATEWAY_CONFIG"])
    return next((path for path in FOUND if path.is_file()), None)


def load(path: Path, environ: Mapping[str, str]) -> Settings:
    """Read a YAML file, with `${VAR}` and `${VAR:-default}` from `environ`. Raises ConfigError with every mistake."""
    document = read(_text(path), environ)
    if document.data is None:
        mistakes = document.mistakes or [Mistake((), "the file is empty: upstreams and models must be said")]
        raise ConfigError(f"{path}:{mistake.line or 1}: {mistake.message}" for mistake in mistakes)
    settings, mistakes = _validate(document.data, document.mistakes)
    if settings is None:
        lines = [(mistake.line or document.line(mistake.place), mistake) for mistake in mistakes]
        lines.sort(key=lambda line: line[0])
        raise ConfigError(f"{path}:{line}: {_spoken(mistake)}" for line, mistake in lines)
    return settings


def from_environment(environ: Mapping[str, str]) -> Settings:
    """What to serve where there is no file: `OPENAI_API_KEY` serves every model. Raises ConfigError without it.

    `OPENAI_BASE_URL` is where; `GATEWAY_KEY` is the callers' key, and without it only this machine may call.
    """
    if not environ.get("OPENAI_API_KEY"):
        raise ConfigError(
            ["no config file and no OPENAI_API_KEY: name a file with --config or GATEWAY_CONFIG, or set OPENAI_API_KEY"]
        )
    key = environ.get("GATEWAY_KEY")
    data: dict[str, Any] = {
        "auth": {"keys": [{"name": "default", "key": key}]} if key else {"required": False},
        "server": {} if key else {"host": "127.0.0.1"},
        "upstreams": {
            "openai": {
                "kind": "openai",
                "url": environ.get("OPENAI_BASE_URL") or OPENAI_URL,
                "api_key": environ["OPENAI_API_KEY"],
            }
        },
        "models": {"*": {"targets": [{"upstream": "openai"}]}},
    }
    variables = {"url": "OPENAI_BASE_URL", "api_key": "OPENAI_API_KEY", "key": "GATEWAY_KEY"}
    settings, mistakes = _validate(data, [])
    if settings is None:
        raise ConfigError(f"{variables.get(str(m.place[-1]), _path(m.place))}: {m.message}" for m in mistakes)
    return settings


def listening(
    settings: Settings, *, host: str | None, port: int | None, admin_port: int | None, exposable: bool = True
) -> Settings:
    """The same settings on another address; None leaves a part as it is. Raises ConfigError in terms of the options.

    Not `exposable`: with auth off, any address but this machine's own is refused.
    """
    said = {"host": host, "port": port, "admin_port": admin_port}
    said = {name: value for name, value in said.items() if value is not None}
    data = {"server": settings.server.model_dump() | said}
    try:
        server = Server.model_validate(data["server"])
    except ValidationError:
        raise ConfigError(["--host: must be a host name or an address"]) from None
    wrong = [message for place, message in contradictions(data) if place[0] == "server"]
    if wrong:
        raise ConfigError(f"--port, --admin-port: {message}" for message in wrong)
    if not exposable and not settings.auth.required and not _loopback(server.host):
        raise ConfigError(["--host: with auth off only this machine may call: set GATEWAY_KEY, or write a config file"])
    return settings.model_copy(update={"server": server})


def demo_ports(port: int | None, admin_port: int | None, environ: Mapping[str, str]) -> tuple[int, int]:
    """The demo's two ports: as given, else `PORT`, else 8080; and as given, else the next one. Raises ConfigError."""
    if port is None:
        said = environ.get("PORT") or "8080"
        if not re.fullmatch(r"[0-9]{1,5}", said) or int(said) > 65535:
            raise ConfigError(["PORT: must be a port, 0 to 65535"])
        port = int(said)
    if admin_port is None:
        admin_port = port + 1 if port else 0
    if admin_port > 65535:
        raise ConfigError(["--admin-port: there is none after 65535, so it must be given"])
    if port and port == admin_port:
        raise ConfigError(["--port, --admin-port: must not be the same"])
    return port, admin_port


def announcement(settings: Settings) -> list[str]:
    """What `from_environment` made, in lines for whoever started it; without secrets."""
    url = urlsplit(settings.upstreams["openai"].replicas[0])
    lines = [f'no config file, so from the environment: every model ("*") goes to {url.scheme}://{url.netloc}']
    if settings.auth.required:
        lines.append("callers must send GATEWAY_KEY")
    else:
        lines.append(f"GATEWAY_KEY is not set: auth is off, and only {settings.server.host} is listened on")
    return lines


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the config file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()}


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(_BYTES + 1)
    except OSError as failure:
        raise ConfigError([f"{path}: {failure.strerror or 'unreadable'}"]) from None
    except ValueError:
        raise ConfigError(["the config file's name is not a path"]) from None
    if len(raw) > _BYTES:
        raise ConfigError([f"{path}: over {_BYTES} bytes"])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        line = raw.count(b"\n", 0, failure.start) + 1
        raise ConfigError([f"{path}:{line}: not UTF-8"]) from None


def _validate(data: Data | dict[str, Any], earlier: list[Mistake]) -> tuple[Settings | None, list[Mistake]]:
    """The settings, or all mistakes: one for a place, the earliest found, and none within what is wrong already."""
    settings = None
    found: list[Mistake] = []
    try:
        settings = Settings.model_validate(data)
    except ValidationError as failure:
        found += [_mistake(dict(error)) for error in failure.errors(include_url=False)]
        found += [Mistake(place, message) for place, message in contradictions(data)]
    mistakes = list(earlier)
    for mistake in found:
        if not any(mistake.place[: len(known.place)] == known.place for known in mistakes if known.place):
            mistakes.append(mistake)
    return (None if mistakes else settings), mistakes


def _mistake(error: dict[str, Any]) -> Mistake:
    place: Place = error["loc"]
    kind: str = error["type"]
    if place and place[-1] == "[key]":
        return Mistake(place[:-2], error["msg"], None)
    if kind == "extra_forbidden":
        return Mistake(place, f"unknown key; known here: {', '.join(_known(place[:-1]))}")
    if kind == "missing":
        return Mistake(place, "required")
    if error["input"] is None:
        return Mistake(place, "has no value")
    return Mistake(place, _said(kind, error.get("ctx", {}), error["msg"]))


_SAID = {
    "int_": "must be a whole number",
    "float_": "must be a number",
    "bool_": "must be true or false",
    "string_type": "must be text",
    "string_pattern_mismatch": "must be a host name or an address",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must not be empty",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "finite_number": "must be finite",
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be more than {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "not supported; supported here: {expected}",
}


def _said(kind: str, context: Mapping[str, Any], words: str) -> str:
    """Our words for pydantic's kinds of mistakes; `words` are a validator's own."""
    said = next((said for start, said in _SAID.items() if kind.startswith(start)), words)
    return said.format_map(context).replace("'", "").replace(" or ", ", ") if context else said


def _known(place: Place) -> Iterator[str]:
    """Names of the settings in the section at `place`."""
    here: type[Section] = Settings
    steps = iter(place)
    for step in steps:
        annotation = here.model_fields[str(step)].annotation
        if get_origin(annotation) in {dict, tuple}:
            next(steps, None)
        here = next(held for held in (annotation, *get_args(annotation)) if _is_section(held))
    yield from here.model_fields


def _is_section(held: object) -> bool:
    return isinstance(held, type) and issubclass(held, Section)


def _spoken(mistake: Mistake) -> str:
    path = _path(mistake.place)
    return f"{path}: {mistake.message}" if path else mistake.message


def _path(place: Place) -> str:
    """The place in words, as far as it is made of names; a key that is none may be a secret in a wrong place."""
    path = ""
    for step in place:
        if isinstance(step, int):
            path += f"[{step}]"
        elif re.fullmatch(r"[A-Za-z0-9_-]+", step):
            path += f".{step}" if path else step
        else:
            path += f'."{step}"'
    return path
