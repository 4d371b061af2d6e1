"""Real processes for tests: started with ports that the kernel chooses, watched by their output, ended by their pid.

Nothing here sleeps: a reader thread takes the lines as they come, and whoever waits for one is woken by it, or fails with
all that the process has said when its deadline has passed.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tests.support.secrets import watch

PATIENCE = 10.0  # seconds; far more than anything here takes
REAL = Path(__file__).parent.parent / "real"


class Lines:
    """What a process has said on one of its outputs, line by line."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._reader.start()

    def __iter__(self) -> Iterator[str]:
        with self._changed:
            return iter(self._lines.copy())

    def __len__(self) -> int:
        return len(self._lines)

    def wait(self, wanted: Callable[[str], bool], *, since: int = 0, patience: float = PATIENCE) -> str:
        """The first line from number `since` on that is `wanted`."""
        deadline = time.monotonic() + patience
        with self._changed:
            while True:
                for line in self._lines[since:]:
                    if wanted(line):
                        return line
                since = len(self._lines)
                if self._ended or not self._changed.wait(deadline - time.monotonic()):
                    raise LookupError("no such line in:\n" + "\n".join(self._lines))

    def close(self) -> None:
        """Read what is left, once the process has ended."""
        self._reader.join(PATIENCE)

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                watch.see("a process", line)
                with self._changed:
                    self._lines.append(line.decode("utf-8", "backslashreplace").rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class Process:
    """A child process while it is entered. Leaving ends it with SIGTERM, and `code` is what it ended with."""

    def __init__(self, command: list[str], environ: Mapping[str, str] | None = None) -> None:
        self._command = command
        self._environ = {**_inherited(), **(environ or {})}
        self.code: int | None = None

    def __enter__(self) -> Self:
        self._child = subprocess.Popen(
            self._command, env=self._environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self._child.stdout is not None
        assert self._child.stderr is not None
        self.out = Lines(self._child.stdout)
        self.err = Lines(self._child.stderr)
        try:
            self.started()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def started(self) -> None:
        """Wait until it can be used."""

    def stop(self) -> None:
        """End it, the hard way if it does not listen, and read its last words."""
        self._child.terminate()
        try:
            self.code = self._child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self.code = self._child.wait()
        self.out.close()
        self.err.close()


class Llama(Process):
    """A real llama.cpp server with a tiny random model. It answers to `key` only."""

    def __init__(self, key: str) -> None:
        super().__init__([sys.executable, str(REAL / "llama.py"), str(REAL / "tiny-qwen2.gguf"), key])
        self.key = key
        self.url = ""

    def started(self) -> None:
        """Learn its URL."""
        self.url = self.out.wait(lambda line: line.startswith("http"))

    def wait_cancelled(self, since: int) -> None:
        """Wait until it says that it has given up a task, in a line of its log from number `since` on."""
        self.err.wait(lambda line: "cancel task" in line, since=since)


class GatewayProcess(Process):
    """`gateway serve` with a config, whose ports are 0. `environ` holds what the config names."""

    def __init__(self, config: Path, environ: Mapping[str, str] | None = None) -> None:
        program = Path(sys.executable).parent / "gateway"
        super().__init__([str(program), "serve", "--config", str(config)], environ)
        self.url = self.admin_url = ""

    def started(self) -> None:
        """Learn where it listens."""
        said = json.loads(self.out.wait(lambda line: '"event":"listening"' in line))
        self.url = f"http://{said['host']}:{said['port']}"
        self.admin_url = f"http://{said['admin_host']}:{said['admin_port']}"

    def record(self, request_id: str) -> dict[str, Any]:
        """The log line of a request, which is written when the request has ended."""
        mark = f'"request_id":"{request_id}"'
        found: dict[str, Any] = json.loads(self.out.wait(lambda line: '"event":"request"' in line and mark in line))
        return found

    def records(self) -> list[dict[str, Any]]:
        """The log lines of all requests so far."""
        return [said for said in map(json.loads, self.out) if said["event"] == "request"]


def _inherited() -> dict[str, str]:
    """The environment without what would configure a gateway or an SDK."""
    ours = ("OPENAI_", "GATEWAY_", "DASHSCOPE_", "VLLM_", "TRITON_", "LANGCHAIN_", "LANGSMITH_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    with contextlib.suppress(KeyError):
        del kept["PORT"]
    return kept
