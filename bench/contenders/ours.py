"""This project's gateway as a service would meet it: caller keys, limits, metrics and the JSON request log are on."""

import sys
from pathlib import Path

import yaml

import gateway
from bench.contender import Contender, Launch
from bench.process import free_port
from bench.talk import KEY


def launch(upstream_port: int, folder: Path) -> Launch:
    port = free_port()
    settings = {
        "server": {"host": "127.0.0.1", "port": port, "admin_port": free_port()},
        "auth": {"keys": [{"name": "bench", "key": KEY, "models": ["*"]}]},
        "upstreams": {
            "bench": {
                "kind": "openai",
                "url": f"http://127.0.0.1:{upstream_port}/v1",
                "api_key": "the-upstream-s-key",
                "concurrency": {"limit": 4000},
                "transport": {"max_connections": 4000},  # room for the silent streams; nobody else is limited either
            }
        },
        "models": {
            name: {"targets": [{"upstream": "bench"}]} for name in ("bench-plain", "bench-stream", "bench-silent")
        },
        "log": {"format": "json", "level": "info"},
    }
    config = folder / "gateway.yaml"
    config.write_text(yaml.safe_dump(settings))
    command = [str(Path(sys.executable).with_name("gateway")), "serve", "--config", str(config)]
    return Launch(command, port, "/healthz")


CONTENDER = Contender(
    name="ours",
    setting="one process; keys, metrics and the JSON request log (to a file) on; no store, no Redis",
    version=lambda: gateway.__version__,
    launch=launch,
)
