"""vllm-router: a router of model servers in Rust, with one worker behind it."""

import sys
from pathlib import Path

from bench.contender import Contender, Launch, installed
from bench.process import free_port


def launch(upstream_port: int, folder: Path) -> Launch:  # noqa: ARG001
    port = free_port()
    command = [str(Path(sys.executable).with_name("vllm-router")), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", f"http://127.0.0.1:{upstream_port}", "--policy", "round_robin"]
    command += ["--worker-startup-check-interval", "1", "--max-concurrent-requests", "100000"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port()), "--log-level", "warning"]
    return Launch(command, port, "/health")


CONTENDER = Contender(
    name="vllm-router",
    setting="one worker, round robin; metrics on, log at warning",
    version=installed("vllm-router"),
    launch=launch,
)
