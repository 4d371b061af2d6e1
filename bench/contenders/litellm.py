"""LiteLLM's proxy with one model and no database. Only with BENCH_LITELLM=1, from an environment of its own."""

import os
from pathlib import Path

import yaml

from bench.contender import Contender, Launch
from bench.process import free_port
from bench.talk import KEY

_ENVIRONMENT = Path(".venv-bench-litellm")


def version() -> str | None:
    if os.environ.get("BENCH_LITELLM") != "1":
        return None
    found = _ENVIRONMENT.glob("lib/python*/site-packages/litellm-*.dist-info")
    return next((folder.name.removesuffix(".dist-info").partition("-")[2] for folder in found), None)


def launch(upstream_port: int, folder: Path) -> Launch:
    port = free_port()
    names = ("bench-plain", "bench-stream", "bench-silent")
    where = {"api_base": f"http://127.0.0.1:{upstream_port}/v1", "api_key": "the-upstream-s-key"}
    models = [{"model_name": name, "litellm_params": {"model": f"openai/{name}", **where}} for name in names]
    config = folder / "litellm.yaml"
    config.write_text(yaml.safe_dump({"model_list": models, "general_settings": {"master_key": KEY}}))
    command = [str(_ENVIRONMENT.absolute() / "bin/litellm"), "--config", str(config)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    quiet = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}
    return Launch(command, port, "/health/liveliness", quiet)


CONTENDER = Contender(
    name="litellm",
    setting="one worker; master key; no database, no callbacks; loaded less: 10 a second, 8 streams, 100 silent ones",
    version=version,
    launch=launch,
    slow=True,
)
