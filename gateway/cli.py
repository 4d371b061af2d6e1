"""The commands: `gateway serve`, `check`, `explain`, `config schema` and `demo`.

Each turns its options into settings and hands them on; what is wrong is told in lines on stderr, without a traceback,
and the exit code is 1. It must not know how a config is read, nor how anything is served.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from gateway import __version__
from gateway.config import (
    ConfigError,
    Settings,
    Upstream,
    announcement,
    demo_ports,
    find,
    from_environment,
    listening,
    load,
    process_environment,
    require_extras,
    require_files,
    schema,
)
from gateway.explain import UnknownModel, UnreadableMetrics, explained, read

PORT = click.IntRange(0, 65535)
TRY = """\
Try it:
  curl -N http://127.0.0.1:{port}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "demo", "stream": true, "messages": [{{"role": "user", "content": "Hello"}}]}}'
"""
config_option = click.option(
    "--config",
    "named",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Config file. Else GATEWAY_CONFIG, ./gateway.yaml or /etc/gateway/gateway.yaml.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gateway")
def main() -> None:
    """A reverse proxy that services point their OpenAI base URL at."""


@main.command()
@config_option
@click.option("--host", metavar="HOST", help="Listen here instead of where the config says.")
@click.option("--port", type=PORT, metavar="N", help="Port of the API, instead of the config's.")
@click.option("--admin-port", type=PORT, metavar="N", help="Port of /metrics and the admin API, likewise.")
def serve(named: Path | None, host: str | None, port: int | None, admin_port: int | None) -> None:
    """Serve until told to stop.

    Without a config file, the environment is enough: OPENAI_API_KEY, DASHSCOPE_API_KEY, VLLM_URL and TRITON_URL say where
    calls go, and GATEWAY_KEY is the callers' key.
    """
    environ = process_environment()
    path = find(named, environ)
    with _told():
        settings = load(path, environ) if path else from_environment(environ, _listing)
        settings = listening(settings, host=host, port=port, admin_port=admin_port, exposable=path is not None)
        require_extras(settings)
        require_files(settings)
    for line in announcement(settings) if path is None else ():
        click.echo(line, err=True)
    from gateway.server import serve as run  # noqa: PLC0415  # a server's imports are not for `check` to wait for

    with _told():
        sys.exit(run(settings))


@main.command()
@click.option("--port", type=PORT, metavar="N", help="Port of the API. Else PORT, else 8080.")
@click.option("--admin-port", type=PORT, metavar="N", help="Port of /metrics and the admin API. Else the next one.")
def demo(port: int | None, admin_port: int | None) -> None:
    """Serve a built-in `demo` model on 127.0.0.1, with no config and no key."""
    with _told():
        ports = demo_ports(port, admin_port, process_environment())
    if ports[0]:
        click.echo(TRY.format(port=ports[0]), err=True)
    from gateway.demo import demo_settings, demo_transport  # noqa: PLC0415  # as in `serve`
    from gateway.server import serve as run  # noqa: PLC0415  # as in `serve`

    with _told():
        sys.exit(run(demo_settings(*ports), transport=demo_transport()))


@main.command()
@config_option
@click.option("--online", is_flag=True, help="Ask every upstream, too, for its models, with its key.")
def check(named: Path | None, online: bool) -> None:
    """Read the config and tell every mistake in it, each with its line and path."""
    environ = process_environment()
    path = find(named, environ)
    with _told():
        settings = load(path, environ) if path else from_environment(environ, _listing if online else None)
        require_extras(settings)
        if online:
            require_files(settings)
    counted = ((settings.upstreams, "upstream"), (settings.models, "model"), (settings.auth.keys, "key"))
    told = ", ".join(f"{len(things)} {word}{'' if len(things) == 1 else 's'}" for things, word in counted)
    click.echo(f"{path or 'environment'}: ok ({told})")
    if online:
        sys.exit(_ask(settings))


@main.command()
@config_option
@click.option("--model", required=True, metavar="NAME", help="What a caller would ask for.")
@click.option(
    "--url", metavar="URL", help="Admin port of a running gateway, whose metrics tell how the replicas stand."
)
def explain(named: Path | None, model: str, url: str | None) -> None:
    """Tell which way a request for a model would go."""
    environ = process_environment()
    path = find(named, environ)
    with _told():
        settings = load(path, environ) if path else from_environment(environ, _listing)
        click.echo(explained(settings, model, None if url is None else read(url)))


@main.group()
def config() -> None:
    """Tell about the config file."""


@config.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of the config file."""
    click.echo(json.dumps(schema(), indent=2))


def _listing(upstream: Upstream) -> list[str]:
    """The models that an upstream lists. Raises ConfigError."""
    from gateway.online import listing  # noqa: PLC0415  # as in `serve`

    return listing(upstream)


def _ask(settings: Settings) -> int:
    """Ask the upstreams, print what comes of it, and return the exit code."""
    from gateway.online import checked, told  # noqa: PLC0415  # as in `serve`

    failed = False
    with _told():
        for is_failure, line in told(settings, checked(settings)):
            click.echo(line, err=is_failure)
            failed |= is_failure
    return int(failed)


@contextmanager
def _told() -> Iterator[None]:
    """What is wrong with a config or an option, or with the addresses in them, ends the command in plain lines."""
    try:
        yield
    except (ConfigError, UnknownModel, UnreadableMetrics) as failure:
        click.echo(str(failure), err=True)
    except OSError as failure:
        told = ": ".join(str(part) for part in (failure.filename, failure.strerror) if part)
        click.echo(f"cannot start: {told or type(failure).__name__}", err=True)
    else:
        return
    sys.exit(1)
