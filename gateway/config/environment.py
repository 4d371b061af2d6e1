"""The way in without a file: a few variables, each of which names an upstream and what it serves.

`OPENAI_API_KEY` serves what nobody else does, `DASHSCOPE_API_KEY` what begins with qwen, `VLLM_URL` what it lists, and
`TRITON_URL` the model that `TRITON_MODEL` names. It opens no socket: whoever can ask is an argument.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from gateway.config.document import Document
from gateway.config.loading import ConfigError, validated
from gateway.config.mistake import Mistake, Place
from gateway.config.settings import Settings
from gateway.config.upstreams import Upstream

OPENAI_URL = "https://api.openai.com/v1"
DASHSCOPE_URL = "https://dashscope.aliyuncs.com/compatible-mode/v1"
_STARTS = ("OPENAI_API_KEY", "DASHSCOPE_API_KEY", "VLLM_URL", "TRITON_URL")
_MOST_TOLD = 5

Listing = Callable[[Upstream], Iterable[str]]
"""Asks an upstream which models it has. Raises ConfigError, whose one line begins with what went wrong."""

_VARIABLES: dict[Place, str] = {
    ("auth",): "GATEWAY_KEY",
    ("upstreams", "openai", "url"): "OPENAI_BASE_URL",
    ("upstreams", "openai", "api_key"): "OPENAI_API_KEY",
    ("upstreams", "qwen", "url"): "DASHSCOPE_BASE_URL",
    ("upstreams", "qwen", "api_key"): "DASHSCOPE_API_KEY",
    ("upstreams", "vllm", "api_key"): "VLLM_API_KEY",
    ("upstreams", "vllm"): "VLLM_URL",
    ("upstreams", "triton", "template"): "TRITON_TEMPLATE",
    ("upstreams", "triton", "profile"): "TRITON_PROFILE",
    ("upstreams", "triton"): "TRITON_URL",
    ("models",): "TRITON_MODEL",
}


def from_environment(environ: Mapping[str, str], listing: Listing | None = None) -> Settings:
    """What to serve where there is no file. Raises ConfigError, each mistake told by its variable.

    With `OPENAI_API_KEY`, vLLM is given just what it lists; without a `listing` that is nothing yet. Without that key it is
    given whatever nobody else serves. `GATEWAY_KEY` is the callers' key, and without it only this machine may call.
    """
    given = {name: value for name, value in environ.items() if value}
    if not any(name in given for name in _STARTS):
        names = ", ".join(_STARTS)
        raise ConfigError(
            [f"no config file and none of {names}: name a file with --config or GATEWAY_CONFIG, or set one of them"]
        )
    if "TRITON_URL" in given and "TRITON_MODEL" not in given:
        raise ConfigError(["TRITON_URL: needs TRITON_MODEL, the name of the model to serve"])
    data = _data(given)
    settings = _settings(data)
    if "VLLM_URL" in given and "OPENAI_API_KEY" in given and listing is not None:
        try:
            listed = {name for name in listing(settings.upstreams["vllm"]) if _fit(name)}
        except ConfigError as failure:
            raise ConfigError(f"VLLM_URL: {mistake}" for mistake in failure.mistakes) from None
        settings = _settings(data | {"models": {name: _to("vllm") for name in sorted(listed)} | data["models"]})
    return settings


def announcement(settings: Settings) -> list[str]:
    """What `from_environment` made, in lines for whoever started it; without secrets."""
    served: dict[str, list[str]] = {}
    for name, model in settings.models.items():
        served.setdefault(model.targets[0].upstream, []).append(name)
    routes = [_route(settings, upstream, names) for upstream, names in served.items()]
    if "*" not in settings.models:
        routes.append("no other model is served")
    lines = [f"no config file, so from the environment: {'; '.join(routes)}"]
    lines += [
        f"TRITON_TEMPLATE is not set: {name} serves completions, and no chat"
        for name, upstream in settings.upstreams.items()
        if name == "triton" and upstream.template is None
    ]
    if settings.auth.required:
        lines.append("callers must send GATEWAY_KEY")
    else:
        lines.append(f"GATEWAY_KEY is not set: auth is off, and only {settings.server.host} is listened on")
    return lines


def _data(given: Mapping[str, str]) -> dict[str, Any]:
    """The config that these variables stand for. What serves the rest of the models comes last."""
    key = given.get("GATEWAY_KEY")
    upstreams = {name: make(given) for (name, variable), make in _UPSTREAMS.items() if variable in given}
    models: dict[str, Any] = {}
    if "triton" in upstreams:
        models[given["TRITON_MODEL"]] = _to("triton")
    if "qwen" in upstreams:
        models["qwen*"] = _to("qwen")
    rest = next((name for name in ("openai", "vllm") if name in upstreams), None)
    if rest is not None:
        models["*"] = _to(rest)
    return {
        "auth": {"keys": [{"name": "default", "key": key}]} if key else {"required": False},
        "server": {} if key else {"host": "127.0.0.1"},
        "upstreams": upstreams,
        "models": models,
    }


def _to(upstream: str) -> dict[str, Any]:
    return {"targets": [{"upstream": upstream}]}


def _openai(given: Mapping[str, str]) -> dict[str, Any]:
    return {"kind": "openai", "url": given.get("OPENAI_BASE_URL", OPENAI_URL), "api_key": given["OPENAI_API_KEY"]}


def _qwen(given: Mapping[str, str]) -> dict[str, Any]:
    return {
        "kind": "qwen",
        "url": given.get("DASHSCOPE_BASE_URL", DASHSCOPE_URL),
        "api_key": given["DASHSCOPE_API_KEY"],
    }


def _vllm(given: Mapping[str, str]) -> dict[str, Any]:
    urls = [_with_path(url.strip()) for url in given["VLLM_URL"].split(",") if url.strip()]
    return {"kind": "vllm", "urls": urls, **_said(given, api_key="VLLM_API_KEY")}


def _with_path(url: str) -> str:
    """People give the server's address, with or without the path that its API is at."""
    return url if re.match("[^/]*//[^/]*/.", url) else f"{url.rstrip('/')}/v1"


def _triton(given: Mapping[str, str]) -> dict[str, Any]:
    said = _said(given, template="TRITON_TEMPLATE", profile="TRITON_PROFILE")
    return {"kind": "triton", "url": given["TRITON_URL"], **said}


def _said(given: Mapping[str, str], **variables: str) -> dict[str, str]:
    return {setting: given[variable] for setting, variable in variables.items() if variable in given}


_UPSTREAMS: dict[tuple[str, str], Callable[[Mapping[str, str]], dict[str, Any]]] = {
    ("triton", "TRITON_URL"): _triton,
    ("vllm", "VLLM_URL"): _vllm,
    ("qwen", "DASHSCOPE_API_KEY"): _qwen,
    ("openai", "OPENAI_API_KEY"): _openai,
}


def _settings(data: dict[str, Any]) -> Settings:
    settings, mistakes = validated(Document(data))
    if settings is None:
        raise ConfigError(dict.fromkeys(f"{_variable(mistake)}: {mistake.message}" for mistake in mistakes))
    return settings


def _variable(mistake: Mistake) -> str:
    place = mistake.place
    return next(name for start, name in _VARIABLES.items() if place[: len(start)] == start)


def _fit(name: str) -> bool:
    """Whether what an upstream lists can be a model's name here, and not a pattern."""
    return re.fullmatch(r"[^\s${}*]{1,256}", name) is not None and name != "unknown"


def _route(settings: Settings, upstream: str, names: list[str]) -> str:
    places = [urlsplit(url) for url, _ in settings.upstreams[upstream].replicas]
    where = " and ".join(f"{place.scheme}://{place.netloc}" for place in places)
    if names == ["*"]:
        return f'every {"other " if len(settings.models) > 1 else ""}model ("*") goes to {where}'
    told = [*names[:_MOST_TOLD], *([f"{len(names) - _MOST_TOLD} more"] if len(names) > _MOST_TOLD else [])]
    return f"{', '.join(told)} {'goes' if len(names) == 1 else 'go'} to {where}"
