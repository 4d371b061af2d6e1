"""OpenAI's models on Azure: the same bodies, at other paths, and with the key in a header of its own.

Paths are relative to the URL of the resource. With `api_version` they name the deployment, whatever the body says; without
it they are Azure's newer ones, which read the deployment's name in the body as OpenAI reads a model's. What there is to
list there are models and not deployments, so nobody is told of it: it only serves to ask whether Azure is well.
"""

from typing import ClassVar
from urllib.parse import quote

from gateway.call import Kind
from gateway.dialects.openai import PATHS, OpenAI


class Azure(OpenAI):
    """What goes to one resource. `api_version`: as Azure writes it, a date."""

    provider: ClassVar[str] = "azure.ai.openai"

    def __init__(self, api_version: str | None = None) -> None:
        self._deployments = api_version is not None
        self._query = "" if api_version is None else f"?api-version={quote(api_version, safe='')}"
        self.health = f"/openai/models{self._query}" if self._deployments else "/openai/v1/models"

    def path(self, kind: Kind, model: str) -> str | None:
        """Where calls of `kind` to the deployment `model` go."""
        if kind == "models":
            return None
        if not self._deployments:
            return f"/openai/v1{PATHS[kind]}"
        return (
            None if model in (".", "..") else f"/openai/deployments/{quote(model, safe='')}{PATHS[kind]}{self._query}"
        )

    def headers(self, api_key: str | None) -> list[tuple[str, str]]:
        """The key as Azure takes it."""
        return [] if api_key is None else [("api-key", api_key)]
