"""What an operator can set: read once, at the start, from one YAML file or from the environment alone.

The only room that reads the environment. It says everything that is wrong with a config at once, and it must not know
what the settings do, nor open a socket, nor repeat a value that it was given: values are secrets until proved otherwise.

`fields` holds the words for single values, `upstreams` and `settings` the shapes, `checks` what two settings say together, `document` the YAML file, `telling` the words for
what is wrong, `loading` and `environment` the ways in.
"""

from gateway.config.checks import resolve
from gateway.config.environment import announcement, from_environment
from gateway.config.fields import Secret
from gateway.config.loading import (
    ConfigError,
    demo_ports,
    find,
    listening,
    load,
    process_environment,
    require_extras,
    require_files,
)
from gateway.config.schema import schema
from gateway.config.settings import Auth, Hedge, Key, LimitsConfig, Log, Model, Server, Settings, Target, Tracing
from gateway.config.upstreams import (
    Azure,
    Breaker,
    Concurrency,
    Health,
    Load,
    Replica,
    Retry,
    Timeouts,
    TransportConfig,
    Upstream,
)

__all__ = [
    "Auth",
    "Azure",
    "Breaker",
    "Concurrency",
    "ConfigError",
    "Health",
    "Hedge",
    "Key",
    "LimitsConfig",
    "Load",
    "Log",
    "Model",
    "Replica",
    "Retry",
    "Secret",
    "Server",
    "Settings",
    "Target",
    "Timeouts",
    "Tracing",
    "TransportConfig",
    "Upstream",
    "announcement",
    "demo_ports",
    "find",
    "from_environment",
    "listening",
    "load",
    "process_environment",
    "require_extras",
    "require_files",
    "resolve",
    "schema",
]
