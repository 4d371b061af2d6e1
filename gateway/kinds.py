"""The kinds of upstreams, and what is known of each before one is spoken to: data, one row a kind.

This is the one list of them. How each is spoken to is its dialect's business; here is only what the config, the start and
the watching of engines go by. It must not import anything that speaks to upstreams, or `gateway check` would wait for it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

UpstreamKind = Literal["openai", "qwen", "vllm", "triton", "tgi", "sglang", "llamacpp", "ollama"]


class Figures(NamedTuple):
    """What an engine's page of metrics calls its load. Of several names for one thing, the first that is there counts.

    `running` and `waiting`: requests. `kv`: the share of the KV cache that is in use, 0 to 1. `done` and `batches`: requests
    since its start, and in how many batches they were worked on. `port`: of the page, if it has one of its own, without TLS.
    """

    running: tuple[str, ...]
    waiting: tuple[str, ...]
    kv: tuple[str, ...] = ()
    done: tuple[str, ...] = ()
    batches: tuple[str, ...] = ()
    port: int | None = None


class Traits(NamedTuple):
    """What sets one kind apart.

    `settings`: those that only it has. `schemes`: of its URLs. `extra`: what of this package must be installed for it, and
    `needs`: which modules of it, by the setting or the scheme of a URL that calls for them. `refused`: what it most often
    means there that a key is not accepted. `figures`: how its engine tells its load, if it does.
    """

    settings: frozenset[str] = frozenset()
    schemes: frozenset[str] = frozenset(("http", "https"))
    extra: str = ""
    needs: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    refused: str = ""
    figures: Figures | None = None


KINDS: dict[UpstreamKind, Traits] = {
    "openai": Traits(settings=frozenset(("azure",))),
    "qwen": Traits(refused="a key belongs to one region, which must be the URL's"),
    "vllm": Traits(
        figures=Figures(
            running=("vllm:num_requests_running",),
            waiting=("vllm:num_requests_waiting",),
            kv=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        )
    ),
    "triton": Traits(
        settings=frozenset(("profile", "template", "tensors", "max_tokens", "cumulative")),
        schemes=frozenset(("http", "https", "grpc", "grpcs")),
        extra="triton",
        needs={"template": ("jinja2", "tokenizers"), "grpc": ("grpc",), "grpcs": ("grpc",)},
        figures=Figures(
            running=(),
            waiting=("nv_inference_pending_request_count",),
            done=("nv_inference_count",),
            batches=("nv_inference_exec_count",),
            port=8002,
        ),
    ),
    "tgi": Traits(figures=Figures(running=("tgi_batch_current_size",), waiting=("tgi_queue_size",))),
    "sglang": Traits(
        figures=Figures(
            running=("sglang:num_running_reqs",), waiting=("sglang:num_queue_reqs",), kv=("sglang:token_usage",)
        )
    ),
    "llamacpp": Traits(
        figures=Figures(running=("llamacpp:requests_processing",), waiting=("llamacpp:requests_deferred",))
    ),
    "ollama": Traits(),
}
