"""The ways in: a file, or the environment alone, and what the command line puts over them.

Whatever is wrong comes as one ConfigError with a line for each mistake: `gateway.yaml:12: upstreams.openai.url: message`.
It must not know what a setting means, but for the few that it makes from the environment.
"""

import os
import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from gateway.config.checks import contradictions
from gateway.config.document import Document, read
from gateway.config.mistake import Mistake
from gateway.config.settings import Server, Settings
from gateway.config.telling import mistakes_in, spoken

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
    settings, mistakes = _validate(document)
    if settings is None:
        lines = [(mistake.line or document.line(mistake.place), mistake) for mistake in mistakes]
        lines.sort(key=lambda line: line[0])
        raise ConfigError(f"{path}:{line}: {spoken(mistake)}" for line, mistake in lines)
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
    settings, mistakes = _validate(Document(data))
    if settings is None:
        raise ConfigError(f"{variables[str(mistake.place[-1])]}: {mistake.message}" for mistake in mistakes)
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
    wrong = [mistake.message for mistake in contradictions(data) if mistake.place[0] == "server"]
    if wrong:
        raise ConfigError(f"--port, --admin-port: {message}" for message in wrong)
    if not exposable and not settings.auth.required and not _loopback(server.host):
        raise ConfigError(["--host: with auth off only this machine may call: set GATEWAY_KEY, or write a config file"])
    return settings.model_copy(update={"server": server})


def require_files(settings: Settings) -> None:
    """Look whether the files that upstreams need can be read. Raises ConfigError with a line for each that can't."""
    wrong = []
    for name, upstream in settings.upstreams.items():
        for field in ("ca_file", "client_cert", "client_key"):
            try:
                if (path := getattr(upstream.transport, field)) is not None:
                    Path(path).open("rb").close()
            except OSError as failure:
                place = ("upstreams", name, "transport", field)
                wrong.append(spoken(Mistake(place, f"cannot be read: {failure.strerror}")))
    if wrong:
        raise ConfigError(wrong)


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
    url = urlsplit(settings.upstreams["openai"].url or "")
    lines = [f'no config file, so from the environment: every model ("*") goes to {url.scheme}://{url.netloc}']
    if settings.auth.required:
        lines.append("callers must send GATEWAY_KEY")
    else:
        lines.append(f"GATEWAY_KEY is not set: auth is off, and only {settings.server.host} is listened on")
    return lines


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


def _validate(document: Document) -> tuple[Settings | None, list[Mistake]]:
    """The settings, or all mistakes; those that follow from one already known are left out."""
    settings = None
    found: list[Mistake] = []
    try:
        settings = Settings.model_validate(document.data)
    except ValidationError as failure:
        found = [*mistakes_in(failure), *contradictions(document.data)]
    fresh = dict.fromkeys(mistake for mistake in found if mistake.place not in document.spoilt)
    mistakes = [*document.mistakes, *fresh]
    return (None if mistakes else settings), mistakes
