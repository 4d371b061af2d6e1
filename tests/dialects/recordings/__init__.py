"""Whole answers of upstreams, as `curl -i` shows them: `real/` taken from running servers, `written/` from documentation.

`NAME.http` in the folder of a kind. docs/conformance.md says of each where it comes from.
"""

from pathlib import Path
from typing import NamedTuple

from gateway.dialects import DIALECTS, Dialect

FOLDER = Path(__file__).parent


class Recording(NamedTuple):
    """One answer. `name`: its place in the folder, without `real/` or `written/` and without `.http`."""

    name: str
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def kind(self) -> str:
        """Which kind of upstream said it."""
        return self.name.partition("/")[0]

    @property
    def dialect(self) -> Dialect:
        """The dialect of that kind."""
        return dialect(self.kind)

    @property
    def streamed(self) -> bool:
        """It is a stream of events."""
        return self.headers["content-type"].startswith("text/event-stream")


def dialect(kind: str) -> Dialect:
    """The dialect of a kind that needs no settings."""
    return {str(name): make for name, make in DIALECTS.items()}[kind]()


def _read(path: Path) -> Recording:
    head, _, body = path.read_bytes().partition(b"\r\n\r\n")
    start, *lines = head.decode("ascii").split("\r\n")
    fields = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in fields}
    return Recording(f"{path.parent.name}/{path.stem}", int(start.split(" ")[1]), headers, body)


_OWN_TESTS = "triton"  # whose dialect is made of settings

RECORDINGS = {
    recording.name: recording
    for path in sorted(FOLDER.glob("*/*/*.http"))
    if (recording := _read(path)).kind != _OWN_TESTS
}
