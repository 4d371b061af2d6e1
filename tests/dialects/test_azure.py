"""Azure: the same bodies as OpenAI's, at its own paths, with its own header for the key."""

import httpx
import orjson
import pytest

from gateway.assembly import dialect_of
from gateway.config import Settings
from gateway.dialects import Dialect
from gateway.dialects.azure import Azure
from gateway.dialects.openai import OpenAI
from gateway.fleet import Endpoint
from gateway.wire.chat import read_call

DATED = Azure("2024-10-21")
NEWER = Azure()


@pytest.mark.parametrize(
    ("dialect", "path"),
    [
        (DATED, "/openai/deployments/gpt-4o/{kind}?api-version=2024-10-21"),
        (NEWER, "/openai/v1/{kind}"),
    ],
)
def test_a_call_goes_to_its_deployment(dialect: Azure, path: str) -> None:
    for kind, end in (("chat", "chat/completions"), ("completions", "completions"), ("embeddings", "embeddings")):
        assert dialect.path(kind, "gpt-4o") == path.format(kind=end)  # type: ignore[arg-type]  # one of them


def test_a_destination_keeps_its_query() -> None:
    endpoint = Endpoint("https://r.openai.azure.com", DATED, DATED.headers("k-1"))
    made = endpoint.destination("chat", "gpt-4o", stream=False)
    assert made is not None
    assert made.prefix.startswith(
        b"POST /openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21 HTTP/1.1\r\nhost: r.openai.azure.com\r\n"
    )
    assert b"api-key: k-1\r\n" in made.prefix
    assert b"authorization" not in made.prefix


@pytest.mark.parametrize("model", ["a/b", "a?b=c", "a#b", "a b", "../../x", "ä", "a%2Fb"])
def test_a_models_name_can_not_change_the_rest_of_the_path(model: str) -> None:
    path = DATED.path("chat", model)
    assert path is not None
    url = httpx.URL(f"https://r.test{path}")
    assert url.query == b"api-version=2024-10-21"
    assert url.raw_path.count(b"/") == 5
    assert url.path == f"/openai/deployments/{model}/chat/completions"


@pytest.mark.parametrize("model", [".", ".."])
def test_a_name_that_is_a_way_up_goes_nowhere(model: str) -> None:
    assert DATED.path("chat", model) is None


def test_the_key_is_sent_as_azure_takes_it_or_not_at_all() -> None:
    assert DATED.headers("k-1") == [("api-key", "k-1")]
    assert DATED.headers(None) == []


def test_models_are_no_deployments_and_so_are_only_asked_for_to_see_whether_it_is_well() -> None:
    assert (DATED.path("models", ""), NEWER.path("models", "")) == (None, None)
    assert (DATED.health, NEWER.health) == ("/openai/models?api-version=2024-10-21", "/openai/v1/models")


def test_the_body_is_what_openai_would_get() -> None:
    call = read_call("chat", orjson.dumps({"model": "m", "stream": True, "messages": []}))
    assert DATED.encode(call, "deployment") == OpenAI().encode(call, "deployment")


@pytest.mark.parametrize(
    ("members", "expected"),
    [({}, OpenAI()), ({"azure": {}}, NEWER), ({"azure": {"api_version": "2024-10-21"}}, DATED)],
)
def test_it_is_chosen_by_its_settings(members: dict[str, object], expected: Dialect) -> None:
    settings = Settings.model_validate(
        {
            "auth": {"required": False},
            "upstreams": {"a": {"kind": "openai", "url": "https://r.openai.azure.com", **members}},
            "models": {"*": {"targets": [{"upstream": "a"}]}},
        }
    )
    made = dialect_of(settings.upstreams["a"])
    assert (type(made), made.health) == (type(expected), expected.health)
