"""A real Triton with four models that say their prompt back: a child process, without a GPU.

The server is the binary inside the wheel of nvidia-pytriton, with its Python backend, whose process finds numpy through the
first `python3` on its PATH. One at a time: it takes ports that the kernel had free a moment ago.
"""

import json
import os
import shutil
import socket
import sys
import sysconfig
import urllib.request
from pathlib import Path
from urllib.error import URLError

from tests.support.processes import Process

MODELS = ("llm", "vllm", "trt", "once")
PATIENCE = 30.0  # seconds; it takes three
_HERE = Path(__file__).parent


class Triton(Process):
    """A server while it is entered. `folder`: an empty one for what it needs."""

    def __init__(self, folder: Path) -> None:
        packages = Path(sysconfig.get_paths()["purelib"])
        server = packages / "pytriton" / "tritonserver"
        backends, repository = folder / "backends", folder / "models"
        shutil.copytree(server / "backends" / "python", backends / "python")
        stub = backends / "python" / "triton_python_backend_stub"
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        shutil.copy(server / "python_backend_stubs" / version / stub.name, stub)
        stub.chmod(0o755)
        for name in MODELS:
            (repository / name / "1").mkdir(parents=True)
            shutil.copy(_HERE / f"{name}.pbtxt", repository / name / "config.pbtxt")
            shutil.copy(_HERE / "model.py", repository / name / "1" / "model.py")
        self.http, self.grpc, self.metrics = free_ports(3)
        self.url, self.grpc_url = f"http://127.0.0.1:{self.http}", f"grpc://127.0.0.1:{self.grpc}"
        options = {
            "model-repository": repository,
            "backend-directory": backends,
            "model-control-mode": "explicit",
            "http-address": "127.0.0.1",
            "http-port": self.http,
            "grpc-address": "127.0.0.1",
            "grpc-port": self.grpc,
            "metrics-address": "127.0.0.1",
            "metrics-port": self.metrics,
            "allow-gpu-metrics": "false",
            "exit-timeout-secs": 1,
        }
        command = [str(server / "bin" / "tritonserver"), *(f"--{name}={value}" for name, value in options.items())]
        libraries = (packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"))
        super().__init__(
            [*command, *(f"--load-model={name}" for name in MODELS)],
            {
                "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
        )

    def started(self) -> None:
        """Wait until it says that it serves."""
        self.err.wait(lambda line: "Started HTTPService" in line, patience=PATIENCE)

    def wait_cancelled(self, since: int) -> None:
        """Wait until a model has seen that nobody wants its answer, in what it said from line `since` on."""
        self.out.wait(lambda line: line.startswith("CANCELLED"), since=since)

    def asked(self, since: int) -> dict[str, object]:
        """What a model was given: the first time from line `since` on."""
        line = self.out.wait(lambda line: line.startswith("ASKED"), since=since)
        found: dict[str, object] = json.loads(line.removeprefix("ASKED "))
        return found

    def load(self, model: str) -> None:
        """Have it load a model, or load it again."""
        self._control(model, "load")

    def unload(self, model: str) -> None:
        """Have it unload a model."""
        self._control(model, "unload")

    def _control(self, model: str, what: str) -> None:
        request = urllib.request.Request(f"{self.url}/v2/repository/models/{model}/{what}", method="POST")
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            assert answer.status == 200

    def ready(self, path: str = "/v2/health/ready") -> bool:
        """What it says of its health."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as answer:
                return bool(answer.status == 200)
        except URLError:
            return False


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on. They are let go again, as the server can't be given an open socket."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
