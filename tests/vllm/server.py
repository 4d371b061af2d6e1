"""Real vLLM servers as child processes: each is a family of three, which is ended as one."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.figures import sums, until
from tests.support.processes import REAL, Process

NAME = "tiny"
KEY = "sk-planted-vllms-9Rk4"
PATIENCE = 300.0  # seconds; one takes about one minute to start, and they are started together
_MODEL = Path(__file__).parent / "model.py"
# Of a session of its own, so that it can be ended with its children, and behind whatever else the machine has to do.
_APART = "import os, sys; os.setsid(); os.nice(10); os.execv(sys.argv[1], sys.argv[1:])"
_OPTIONS = (
    *("--host", "127.0.0.1"),
    *("--max-model-len", "32768"),
    *("--api-key", KEY),
    "--enforce-eager",
    "--enable-log-requests",
)


def installed() -> Path:
    """Where the programs of its environment are. Raises LookupError."""
    folder = os.environ.get("VLLM")
    if not folder:
        raise LookupError("VLLM must name the environment that vLLM is installed in: use make test-vllm")
    return Path(folder).resolve() / "bin"


def make_model(folder: Path) -> tuple[Path, Path]:
    """A model and an adapter, in `folder`."""
    command = [str(installed() / "python"), str(_MODEL), str(REAL / "tiny-qwen2"), str(folder)]
    subprocess.run(command, check=True, timeout=PATIENCE)
    return folder / "model", folder / "adapter"


class Vllm(Process):
    """A server while it is entered, which is not yet a server that answers: that takes `ready`."""

    def __init__(self, model: Path, port: int, *options: str) -> None:
        self.root = f"http://127.0.0.1:{port}"
        self.url = f"{self.root}/v1"
        program = str(installed() / "vllm")
        serve = [program, "serve", str(model), "--served-model-name", NAME, "--port", str(port)]
        super().__init__(
            [sys.executable, "-c", _APART, *serve, *_OPTIONS, *options],
            {
                "HF_HUB_OFFLINE": "1",
                "TRANSFORMERS_OFFLINE": "1",
                "VLLM_NO_USAGE_STATS": "1",
                "DO_NOT_TRACK": "1",
                "VLLM_CPU_KVCACHE_SPACE": "1",
                # one thread each: several that wait for each other on the same few cores wait long
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "OMP_NUM_THREADS": "1",
                "PATH": f"{installed()}:{os.environ['PATH']}",
            },
        )

    def ready(self) -> None:
        """Wait until it serves."""
        self.err.wait(lambda line: "Application startup complete" in line, patience=PATIENCE)

    def wait_said(self, words: str, since: int = 0) -> None:
        """Wait for a line of its log that has these words, from number `since` on."""
        self.out.wait(lambda line: words in line, since=since)

    def stop(self) -> None:
        """End it, and whatever of its family is left."""
        super().stop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)

    def kill_engine(self) -> None:
        """What a crash of the process that computes is to the one that talks."""
        found = next(match for line in self.out if (match := re.search(r"\(EngineCore\w* pid=(\d+)\)", line)))
        os.kill(int(found[1]), signal.SIGKILL)

    def gone(self) -> int:
        """Wait for its end, and tell its exit code."""
        return self._child.wait(60)

    def figures(self) -> dict[str, float]:
        """Its metrics, by their names without labels; of several series the sum."""
        return sums(f"{self.root}/metrics")

    def wait_running(self, number: int) -> None:
        """Wait until it says that it works on so many requests."""
        until(self.figures, lambda figures: figures["vllm:num_requests_running"] == number)
