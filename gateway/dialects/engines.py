"""Engines that differ from OpenAI or from vLLM in a few words: what they say when they refuse, and where they are asked."""

from collections.abc import Mapping
from typing import ClassVar

from gateway.dialects.openai import OpenAI
from gateway.dialects.vllm import VLLM


class TGI(OpenAI):
    """Hugging Face's Text Generation Inference. What it calls a failed dependency (424) is its own model that failed."""

    provider: ClassVar[str] = "tgi"
    health: str = "/../health"
    checked: ClassVar[bool] = True
    meanings: ClassVar[Mapping[str, int]] = {"overloaded": 529, "generation": 500, "incomplete_generation": 500}
    statuses: ClassVar[Mapping[int, int]] = {424: 500}


class SGLang(VLLM):
    """Flat errors. Its health paths may run the model, so that it is asked for its models instead."""

    provider: ClassVar[str] = "sglang"
    health: str = "/models"
    busy: ClassVar[tuple[str, ...]] = ("queue is full",)
    codes: ClassVar[Mapping[str, str]] = {"model's context length": "context_length_exceeded"}


class LlamaCpp(VLLM):
    """llama.cpp's server. Its 503 is that of a model that is still loading."""

    provider: ClassVar[str] = "llamacpp"
    busy: ClassVar[tuple[str, ...]] = ()
    codes: ClassVar[Mapping[str, str]] = {"exceed_context_size_error": "context_length_exceeded"}


class Ollama(OpenAI):
    """Ollama's `/v1`. Its health is its version."""

    provider: ClassVar[str] = "ollama"
    health: str = "/../api/version"
    checked: ClassVar[bool] = True
    busy: ClassVar[tuple[str, ...]] = ("server busy", "overloaded")
