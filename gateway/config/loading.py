"""The way in from a file, and what the command line puts over it.

Whatever is wrong comes as one ConfigError with a line for each mistake: `gateway.yaml:12: upstreams.openai.url: message`.
It must not know what a setting means.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from gateway.config.checks import contradictions
from gateway.config.document import Document, read
from gateway.config.mistake import Mistake, Place
from gateway.config.settings import Server, Settings
from gateway.config.telling import mistakes_in, spoken
from gateway.kinds import KINDS

FOUND = (Path("gateway.yaml"), Path("/etc/gateway/gateway.yaml"))
_BYTES = 1024 * 1024
_EXPORTERS = {
    protocol: {f"opentelemetry-exporter-otlp-proto-{protocol}": f"opentelemetry.exporter.otlp.proto.{protocol}"}
    for protocol in ("grpc", "http")
}
_PEM = ("ca_file", "client_cert", "client_key")


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
    settings, mistakes = validated(document)
    if settings is None:
        lines = [(mistake.line or document.line(mistake.place), mistake) for mistake in mistakes]
        lines.sort(key=lambda line: line[0])
        raise ConfigError(f"{path}:{line}: {spoken(mistake)}" for line, mistake in lines)
    return settings


def validated(document: Document) -> tuple[Settings | None, list[Mistake]]:
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
        files: dict[Place, str | None] = {("transport", field): getattr(upstream.transport, field) for field in _PEM}
        files["template",] = upstream.template
        for field, path in files.items():
            try:
                if path is not None and not ("template" in field and Path(path).is_dir()):
                    Path(path).open("rb").close()
            except OSError as failure:
                wrong.append(spoken(Mistake(("upstreams", name, *field), f"cannot be read: {failure.strerror}")))
    if wrong:
        raise ConfigError(wrong)


def _found(module: str) -> object | None:
    try:
        return find_spec(module)
    except ModuleNotFoundError:  # what it would lie in is not there either
        return None


def require_extras(settings: Settings, find: Callable[[str], object | None] = _found) -> None:
    """Look whether what the settings need beyond the base install is there. Raises ConfigError with a line for what is not.

    `find`: None for a module that is not installed.
    """
    wrong = []
    if settings.tracing is not None:
        needed = {"opentelemetry-sdk": "opentelemetry.sdk", **_EXPORTERS[settings.tracing.protocol]}
        missing = [package for package, module in needed.items() if find(module) is None]
        if missing:
            told = f"needs {', '.join(missing)}, not installed: pip install gateway[otel]"
            wrong.append(spoken(Mistake(("tracing",), told)))
    for name, upstream in settings.upstreams.items():
        traits = KINDS[upstream.kind]
        schemes = {urlsplit(url).scheme for url, _ in upstream.replicas}
        for reason, modules in traits.needs.items():
            asked = reason in schemes or getattr(upstream, reason, None) is not None
            missing = [module for module in modules if asked and find(module) is None]
            if missing:
                field = "url" if reason in schemes else reason
                told = f"needs {', '.join(missing)}, not installed: pip install gateway[{traits.extra}]"
                wrong.append(spoken(Mistake(("upstreams", name, field), told)))
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
