"""What a contender is: a proxy in front of the scripted upstream, how to start it, and what it is called in the table."""

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Launch:
    """How to start a contender once its ports are known."""

    command: Sequence[str]
    port: int
    ready_path: str
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Contender:
    """One proxy. `launch` is given the upstream's port and a folder for its configuration."""

    name: str
    setting: str  # how it is set up, in words for the table
    version: Callable[[], str | None]  # None: not installed here
    launch: Callable[[int, Path], Launch]
    slow: bool = False  # milliseconds a request: gets fewer streams, so that a run ends


def installed(package: str) -> Callable[[], str | None]:
    """What tells the installed version of `package`."""

    def version() -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    return version
