"""Who is measured. Each file here says how one contender is configured and started, and nothing else."""

from bench.contender import Contender
from bench.contenders import envoy, litellm, ours, vllm_router

ALL: tuple[Contender, ...] = (ours.CONTENDER, envoy.CONTENDER, vllm_router.CONTENDER, litellm.CONTENDER)
