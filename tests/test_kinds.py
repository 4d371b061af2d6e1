"""What the assembly makes of settings that only one kind has, and what it says where that can't be."""

import random
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from gateway.assembly import build_fleet, dialect_of
from gateway.config import ConfigError, Settings
from gateway.dialects.triton import Triton
from gateway.errors import GatewayError, UpstreamQuota, UpstreamUnauthorized
from gateway.fleet import Fleet, Lease


def settings(**members: Any) -> Settings:
    return Settings.model_validate(
        {
            "auth": {"required": False},
            "upstreams": {"there": {"kind": "triton", "url": "http://triton:8000", **members}},
            "models": {"*": {"targets": [{"upstream": "there"}]}},
        }
    )


def built(made: Settings, transport: httpx.AsyncBaseTransport | None = None) -> Fleet:
    return build_fleet(made, transport, random.Random(), lambda: 0.0)[0]


def test_a_triton_is_told_what_its_settings_say() -> None:
    said = settings(
        profile="tensorrtllm", tensors={"text_input": "PROMPT", "seed": None}, max_tokens=7, cumulative=True
    )
    made = dialect_of(said.upstreams["there"])
    assert isinstance(made, Triton)
    assert made._profile.tensors["text_input"] == "PROMPT"
    assert "seed" not in made._profile.tensors
    assert made.path("models", "") is None


def test_ids_of_answers_differ_and_their_time_is_the_clocks() -> None:
    made = dialect_of(settings().upstreams["there"])
    assert isinstance(made, Triton)
    (one, then), (other, _) = made.mint(), made.mint()
    assert one != other
    assert then > 1_700_000_000


def test_a_template_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        built(settings(template=str(tmp_path / "nowhere")))
    (mistake,) = caught.value.mistakes
    assert mistake.startswith("upstreams.there.template: ")
    assert "\n" not in mistake


def test_grpc_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(ConfigError) as caught:
        built(settings(url="grpc://triton:8001"))
    assert caught.value.mistakes == ("upstreams.there.url: grpc:// needs grpcio: install gateway[triton]",)


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("qwen", UpstreamUnauthorized("x"), {"hint": "a key belongs to one region, which must be the URL's"}),
        ("qwen", UpstreamQuota("x"), {}),
        ("openai", UpstreamUnauthorized("x"), {}),
    ],
)
def test_a_key_that_is_refused_is_told_of_with_what_that_most_often_means_there(
    kind: str, error: GatewayError, said: dict[str, str]
) -> None:
    there = built(settings(kind=kind, url="https://dashscope.example/v1")).upstreams["there"]
    (replica,) = there.replicas
    replica.inflight += 1
    with capture_logs() as lines:
        Lease(there, replica, "m", 0.0, learns=False).settle(error, 0.0)
    (line,) = lines
    assert line == {"event": "key_refused", "log_level": "error", "upstream": "there", "reason": error.code, **said}


def test_a_grpc_url_has_a_replica_named_by_its_host_and_port() -> None:
    fleet = built(settings(url="grpc://triton:8001"), httpx.MockTransport(lambda _: httpx.Response(200)))
    assert [replica.name for replica in fleet.upstreams["there"].replicas] == ["triton:8001"]
