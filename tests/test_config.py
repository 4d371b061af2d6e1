"""What a config file means, and what is said of a bad one."""

import dataclasses
import textwrap
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.admission import ConcurrencySettings
from gateway.api.limits import Limits
from gateway.config import (
    Breaker,
    Concurrency,
    ConfigError,
    Health,
    LimitsConfig,
    Retry,
    Settings,
    Timeouts,
    TransportConfig,
    Upstream,
    announcement,
    demo_ports,
    find,
    from_environment,
    listening,
    load,
    require_extras,
    resolve,
    schema,
)
from gateway.config.document import read
from gateway.config.fields import TENSORS
from gateway.dialects import DIALECTS
from gateway.dialects.triton import MEANINGS, PROFILES
from gateway.fleet import Timeouts as FleetTimeouts
from gateway.health import HealthSettings
from gateway.kinds import KINDS, UpstreamKind
from gateway.policy.balance import BALANCES
from gateway.policy.breaker import BreakerSettings
from gateway.policy.retry import RetrySettings
from gateway.transport.settings import TransportSettings

GOOD = """\
auth:
  keys:
    - {name: search-team, key: "${SEARCH_TEAM_KEY}"}
upstreams:
  openai: {kind: openai, url: "https://api.openai.com/v1", api_key: "${OPENAI_API_KEY}"}
models:
  gpt-4o-mini: {targets: [{upstream: openai}]}
"""
ENVIRON = {"SEARCH_TEAM_KEY": "search-team-key", "OPENAI_API_KEY": "sk-of-the-gateway"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Paths in messages are as they were given, so tests give them relative to an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(text: str, environ: Mapping[str, str] = ENVIRON) -> Settings:
    path = Path("gateway.yaml")
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return load(path, environ)


def mistakes(text: str, environ: Mapping[str, str] = ENVIRON) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(text, environ)
    return [mistake.removeprefix("gateway.yaml:") for mistake in caught.value.mistakes]


def with_upstream(members: str) -> str:
    return (
        "auth: {required: false}\n"
        "upstreams:\n"
        f"  there: {{kind: openai, {members}}}\n"
        "models: {any: {targets: [{upstream: there}]}}\n"
    )


def with_extra(section: str) -> str:
    return f"{GOOD}{section}\n"


pytestmark = pytest.mark.usefixtures("here")


# --- what a good file means ---------------------------------------------------------------------------------------


def test_the_least_that_must_be_said_gets_production_defaults() -> None:
    config = loaded(GOOD)
    assert (config.server.host, config.server.port) == ("0.0.0.0", 8080)
    assert (config.server.admin_address, config.server.admin_port) == ("0.0.0.0", 8081)
    assert (config.server.drain_seconds, config.server.linger_seconds) == (120.0, 0.0)
    assert config.auth.required
    assert config.auth.keys[0].models == ("*",)
    assert config.upstreams["openai"].replicas == (("https://api.openai.com/v1", 1.0),)
    assert config.models["gpt-4o-mini"].targets[0].model is None
    assert config.models["gpt-4o-mini"].targets[0].weight == 1.0
    assert config.models["gpt-4o-mini"].fallbacks == ()
    assert config.models["gpt-4o-mini"].hedge is None
    assert config.upstreams["openai"].balance == "least_load"
    assert (config.upstreams["openai"].health.enabled, config.upstreams["openai"].health.path) == (None, None)
    assert (config.log.format, config.log.level) == ("json", "info")


def test_an_upstream_with_few_connections_gets_no_more_calls_than_those() -> None:
    few = loaded(with_upstream("url: 'http://a', transport: {max_connections: 7}"))
    many = loaded(with_upstream("url: 'http://a', transport: {max_connections: 7000}"))
    assert [config.upstreams["there"].concurrency.limit for config in (few, many)] == [7, 1000]


@pytest.mark.parametrize(
    ("model", "name"),
    [("chat", "chat"), ("gpt-4o", "gpt-*"), ("gpt-4o-mini", "gpt-4o-mini"), ("gpt", "*"), ("*", "*"), ("", "*")],
)
def test_a_models_own_name_goes_before_a_pattern_and_a_longer_pattern_before_a_shorter_one(
    model: str, name: str
) -> None:
    assert resolve(model, ["*", "gpt-*", "g*x", "gpt-4o-mini", "chat"]) == name


def test_a_model_that_no_name_takes_is_none() -> None:
    assert resolve("gpt", ["gpt-*", "gpt-4o"]) is None


def test_everything_that_can_be_said_is_kept() -> None:
    config = loaded(
        """\
        server: {host: 10.0.0.1, port: 1, admin_host: "::1", admin_port: 2, drain_seconds: 0, linger_seconds: 2.5}
        auth: {required: no, keys: [{name: a, key: search-team-key, models: [gpt-4*, chat]}]}
        upstreams:
          vllm:
            kind: openai
            urls: ["http://vllm-0:8000/v1/", {url: "http://[::1]:8000/v1/", weight: 2.5}]
            balance: weighted
            organization: org-1
            project: proj-1
            timeouts: {first_token: 5}
            transport:
              {max_connections: 2, keepalive_expiry: 3, max_connection_age: 4, ca_file: a, client_cert: b, client_key: c,
               engine: httpx, proxy: "http://user:word@proxy:3128"}
            retry: {attempts: 10, reserve: 0}
            breaker: {served: 0, slow_start: 0}
            concurrency: {limit: 2, queue: 0, wait: 0.5}
            health: {enabled: yes, path: /health, interval: 1, timeout: 2, failures: 3}
          pods: {kind: openai, url: "http://vllm.models.svc:8000/v1", discovery: dns}
        models:
          chat:
            targets: [{upstream: vllm, model: Qwen/Qwen3-32B, weight: 3}, {upstream: vllm, weight: 0}]
            fallbacks: [gpt-4o, "any/other"]
            hedge: {after: 0.5}
          "gpt-*": {targets: [{upstream: vllm, model: one-for-all}], hedge: {after: p95}}
          "*": {targets: [{upstream: vllm}]}
        timeouts: {idle: 7, first_token: 6}
        retry: {attempts: 2, base: 1, cap: 1, budget: 1, reserve: 3, longest_wait: 0}
        breaker: {failures: 1, served: 0.5, volume: 2, window: 3, ejection: 4, max_ejection: 5, slow_start: 6}
        log: {format: console, level: debug}
        """
    )
    vllm = config.upstreams["vllm"]
    assert config.server.admin_address == "::1"
    assert not config.auth.required
    assert vllm.replicas == (("http://vllm-0:8000/v1", 1.0), ("http://[::1]:8000/v1", 2.5))
    assert (vllm.balance, vllm.discovery, config.upstreams["pods"].discovery) == ("weighted", "none", "dns")
    assert vllm.concurrency.values() == {"limit": 2, "queue": 0, "wait": 0.5}
    assert vllm.health.values() == {"enabled": True, "path": "/health", "interval": 1.0, "timeout": 2.0, "failures": 3}
    assert vllm.api_key is None
    assert (vllm.timeouts.first_token, vllm.timeouts.idle, vllm.timeouts.reply) == (5.0, 7.0, 300.0)
    assert vllm.transport.values() == {
        "max_connections": 2,
        "keepalive_expiry": 3.0,
        "max_connection_age": 4.0,
        "ca_file": "a",
        "client_cert": "b",
        "client_key": "c",
        "engine": "httpx",
        "proxy": "http://user:word@proxy:3128",
    }
    assert vllm.retry.values() == {
        "attempts": 10,
        "base": 1.0,
        "cap": 1.0,
        "budget": 1.0,
        "reserve": 0,
        "longest_wait": 0.0,
    }
    assert vllm.breaker.values() == {
        "failures": 1,
        "served": 0.0,
        "volume": 2,
        "window": 3.0,
        "ejection": 4.0,
        "max_ejection": 5.0,
        "slow_start": 0.0,
    }
    assert config.upstreams["pods"].retry == config.retry
    assert config.upstreams["pods"].breaker == config.breaker
    assert config.models["chat"].fallbacks == ("gpt-4o", "any/other")
    assert [model.hedge and model.hedge.after for model in config.models.values()] == [0.5, "p95", None]
    assert [target.weight for target in config.models["chat"].targets] == [3.0, 0.0]
    assert list(config.models) == ["chat", "gpt-*", "*"]


def test_settings_do_not_change_once_read() -> None:
    config = loaded(GOOD)
    with pytest.raises(ValueError, match="frozen"):
        config.server.port = 1


def test_defaults_are_those_of_the_code_that_they_set() -> None:
    limits = msgspec.structs.asdict(Limits())
    assert LimitsConfig().values() == {name: limits[name] for name in LimitsConfig.model_fields}
    transport = dataclasses.asdict(TransportSettings())
    assert TransportConfig().values() == {name: transport[name] for name in TransportConfig.model_fields}
    assert Timeouts().values() == msgspec.structs.asdict(FleetTimeouts())
    assert Retry().values() == msgspec.structs.asdict(RetrySettings())
    assert Concurrency().values() == msgspec.structs.asdict(ConcurrencySettings())
    health = msgspec.structs.asdict(HealthSettings())
    assert Health().values() == {"enabled": None, "path": None} | health
    breaker = msgspec.structs.asdict(BreakerSettings())
    assert Breaker().values() == {name: breaker[name] for name in breaker if name != "jitter"} | {"slow_start": 30.0}
    assert set(get_args(Upstream.model_fields["balance"].annotation)) == set(BALANCES)


def test_each_kind_is_in_the_one_list_and_has_a_dialect() -> None:
    assert set(get_args(UpstreamKind)) == set(KINDS) == set(DIALECTS)
    assert TENSORS == MEANINGS
    assert set(get_args(Upstream.model_fields["profile"].annotation)) == set(PROFILES)
    assert all(setting in Upstream.model_fields for traits in KINDS.values() for setting in traits.settings)


def test_each_kind_can_be_said_with_what_only_it_has() -> None:
    config = loaded(
        """
        auth: {required: false}
        upstreams:
          azure: {kind: openai, url: https://r.openai.azure.com/, azure: {api_version: 2024-10-21}}
          newer: {kind: openai, url: https://r.openai.azure.com, azure: {}}
          triton: {kind: triton, urls: ["grpc://a:8001/", "grpcs://b:8001"], tensors: {text_input: PROMPT, seed: null}}
          vllm: {kind: vllm, url: http://a/v1, load: {enabled: yes, path: /engine/metrics, interval: 3}}
        models: {m: {targets: [{upstream: azure}]}}
        """
    )
    azure, newer, triton, vllm = config.upstreams.values()
    assert azure.azure is not None
    assert newer.azure is not None
    assert (azure.azure.api_version, newer.azure.api_version) == ("2024-10-21", None)
    assert triton.replicas == (("grpc://a:8001", 1.0), ("grpcs://b:8001", 1.0))
    assert triton.tensors == {"text_input": "PROMPT", "seed": None}
    assert (triton.profile, triton.template, triton.max_tokens, triton.cumulative) == ("python", None, 1024, False)
    assert vllm.load.values() == {"enabled": True, "path": "/engine/metrics", "port": None, "interval": 3.0}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ("url: http://a", []),
        ("url: http://a, template: /t", ["template: needs jinja2, tokenizers, not installed"]),
        ("url: 'grpc://a:1'", ["url: needs grpc, not installed"]),
        (
            "url: 'grpcs://a:1', template: /t",
            ["template: needs jinja2, tokenizers, not installed", "url: needs grpc, not installed"],
        ),
    ],
)
def test_what_is_not_installed_is_told_only_to_whom_it_is_needed_by(members: str, expected: list[str]) -> None:
    config = loaded(with_upstream(members).replace("openai", "triton"))
    told = [f"upstreams.there.{mistake}: pip install gateway[triton]" for mistake in expected]
    if told:
        with pytest.raises(ConfigError) as caught:
            require_extras(config, lambda _: None)
        assert list(caught.value.mistakes) == told
    require_extras(config, lambda module: module)


# --- scalars and variables ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "port", ["8090", '"8090"', '"${PORT}"', "${PORT}", '"${NONE:-8090}"', '"80${NINETY}"', "!!str 8090"]
)
def test_a_number_may_be_text_or_a_variable(port: str) -> None:
    config = loaded(with_extra(f"server:\n  port: {port}"), {**ENVIRON, "PORT": "8090", "NINETY": "90"})
    assert config.server.port == 8090


@pytest.mark.parametrize("name", ["no", "0123", "2024-08-06", "1e3", "0x10", "12:30:00", ".5", "yes"])
def test_a_name_is_the_text_that_was_written(name: str) -> None:
    config = loaded(GOOD.replace("gpt-4o-mini", name).replace("search-team,", f"{name},"))
    assert list(config.models) == [name]
    assert config.auth.keys[0].name == name


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("'${A}'", "from-the-environment"),
        ("'${NONE:-from-the-file}'", "from-the-file"),
        ("'${EMPTY:-from-the-file}'", "from-the-file"),
        ("'${A:-from-the-file}'", "from-the-environment"),
        ("'$${A}-literal'", "${A}-literal"),
        ("'${YAML}'", "{key:[1]}#'\"&*!"),
        ("'${NESTED}'", "${A}${A}"),
        ("'a$b$$c-12345'", "a$b$$c-12345"),
        ("'${A}:${A}'", "from-the-environment:from-the-environment"),
    ],
)
def test_a_variable_is_put_in_as_it_is(written: str, key: str) -> None:
    environ = {
        **ENVIRON,
        "A": "from-the-environment",
        "EMPTY": "",
        "YAML": "{key:[1]}#'\"&*!",
        "NESTED": "${A}${A}",
    }
    config = loaded(GOOD.replace('"${SEARCH_TEAM_KEY}"', written), environ)
    assert config.auth.keys[0].key.get_secret_value() == key


def test_an_alias_stands_for_what_it_names() -> None:
    config = loaded(
        """\
        auth: {required: false}
        upstreams:
          a: {kind: openai, url: "http://a", timeouts: &slow {reply: 900}}
          b: {kind: openai, url: "http://b", timeouts: *slow}
        models: {m: {targets: [{upstream: a}, {upstream: b}]}}
        """
    )
    assert [upstream.timeouts.reply for upstream in config.upstreams.values()] == [900.0, 900.0]


def test_json_is_a_config_too() -> None:
    config = loaded(
        '{"auth": {"required": false}, "upstreams": {"a": {"kind": "openai", "url": "http://a"}},'
        ' "models": {"m": {"targets": [{"upstream": "a", "weight": 2.5}]}}, "server": {"port": 81, "admin_host": null}}'
    )
    assert config.server.port == 81
    assert config.models["m"].targets[0].weight == 2.5


# --- what is said of a bad file -----------------------------------------------------------------------------------

KNOWN_AT_TOP = "server, auth, upstreams, models, timeouts, retry, breaker, log"
BAD = {
    "a missing variable": (
        GOOD.replace("${OPENAI_API_KEY}", "${NO_SUCH_VARIABLE}"),
        ["5: upstreams.openai.api_key: the environment variable NO_SUCH_VARIABLE is not set"],
    ),
    "a variable without a name": (
        GOOD.replace("${OPENAI_API_KEY}", "${OPENAI-API-KEY}"),
        ["5: upstreams.openai.api_key: ${ must begin ${NAME} or ${NAME:-default}; write $${ for the characters"],
    ),
    "a variable within a variable": (
        GOOD.replace("${OPENAI_API_KEY}", "${OPENAI_API_KEY:-${SEARCH_TEAM_KEY}}"),
        ["5: upstreams.openai.api_key: ${ must begin ${NAME} or ${NAME:-default}; write $${ for the characters"],
    ),
    "an unknown section": (
        with_extra("hedging: {after: 3}"),
        [f"8: hedging: unknown key; known here: {KNOWN_AT_TOP}"],
    ),
    "a section of a later release": (
        with_extra("store: {url: 'sqlite:///gateway.db'}"),
        [f"8: store: unknown key; known here: {KNOWN_AT_TOP}"],
    ),
    "an unknown setting of a model": (
        GOOD.replace("[{upstream: openai}]", "[{upstream: openai}], fallback: [x], hedge: {before: 1}"),
        [
            "7: models.gpt-4o-mini.hedge.after: required",
            "7: models.gpt-4o-mini.hedge.before: unknown key; known here: after",
            "7: models.gpt-4o-mini.fallback: unknown key; known here: targets, fallbacks, hedge",
        ],
    ),
    "fallbacks that can't be": (
        GOOD + "  x-*: {targets: [{upstream: openai}]}\n"
        "  a: {targets: [{upstream: openai}], fallbacks: [x-1, nowhere, a, x-*, x-1, gpt-4o-mini, gpt-4o-minI]}\n"
        "  b: {targets: [{upstream: openai}], fallbacks: a}\n"
        "  c: {targets: [{upstream: openai}], fallbacks: [[a], null, x-1]}\n",
        [
            "9: models.a.fallbacks[1]: no model has this name, and no pattern takes it",
            "9: models.a.fallbacks[2]: a model can't fall back to itself",
            "9: models.a.fallbacks[3]: must be one model's name, and not a pattern",
            "9: models.a.fallbacks[6]: no model has this name, and no pattern takes it",
            "9: models.a.fallbacks[4]: the same model as fallbacks[0]",
            "10: models.b.fallbacks: must be a list",
            "11: models.c.fallbacks[0]: must be text",
            "11: models.c.fallbacks[1]: has no value",
        ],
    ),
    "hedges that can't be": (
        GOOD
        + "".join(
            f"  m{index}: {{targets: [{{upstream: openai}}], hedge: {hedge}}}\n"
            for index, hedge in enumerate(
                ["p95", "{after: p99}", "{after: 0}", "{after: nan}", "{after: [1]}", "{}", "{after: }"]
            )
        ),
        [
            "8: models.m0.hedge: must be a mapping",
            *(f"{8 + at}: models.m{at}.hedge.after: must be p95, or seconds, more than 0" for at in range(1, 5)),
            "13: models.m5.hedge.after: required",
            "14: models.m6.hedge.after: has no value",
        ],
    ),
    "retries that can't be": (
        with_extra("retry:\n  attempts: 0\n  base: 0\n  cap: many\n  budget: 1.1\n  reserve: -1\n  longest_wait: 121"),
        [
            "9: retry.attempts: must be at least 1",
            "10: retry.base: must be more than 0",
            "11: retry.cap: must be a number",
            "12: retry.budget: must be at most 1",
            "13: retry.reserve: must be at least 0",
            "14: retry.longest_wait: must be at most 120",
        ],
    ),
    "too many retries": (with_extra("retry: {attempts: 11}"), ["8: retry.attempts: must be at most 10"]),
    "a breaker that can't be": (
        with_extra("breaker: {failures: 0, served: 2, volume: 0, window: 0, ejection: 0, slow_start: -1, jitter: 1}"),
        [
            "8: breaker.failures: must be more than 0",
            "8: breaker.served: must be at most 1",
            "8: breaker.volume: must be more than 0",
            "8: breaker.window: must be more than 0",
            "8: breaker.ejection: must be more than 0",
            "8: breaker.slow_start: must be at least 0",
            (
                "8: breaker.jitter: unknown key; "
                "known here: failures, served, volume, window, ejection, max_ejection, slow_start"
            ),
        ],
    ),
    "bounds the wrong way round": (
        with_upstream("url: 'http://a', retry: {base: 2, cap: '1'}, breaker: {ejection: 2, max_ejection: 1}")
        + "retry: {base: 3, cap: 2}\nbreaker: {ejection: 3, max_ejection: 2}\n",
        [
            "3: upstreams.there.retry.cap: must not be less than base",
            "3: upstreams.there.breaker.max_ejection: must not be less than ejection",
            "5: retry.cap: must not be less than base",
            "6: breaker.max_ejection: must not be less than ejection",
        ],
    ),
    "more calls than connections": (
        (
            "auth: {required: false}\nupstreams:\n"
            "  a: {kind: openai, url: 'http://a', concurrency: {limit: 1001}}\n"
            "  b: {kind: openai, url: 'http://b', concurrency: {limit: 11}, transport: {max_connections: 10}}\n"
            "  c: {kind: openai, url: 'http://c', concurrency: {limit: 10}, transport: {max_connections: 10}}\n"
            "models: {m: {targets: [{upstream: a}]}}\n"
        ),
        [
            "3: upstreams.a.concurrency.limit: must be at most transport.max_connections, which is 1000 unless given",
            "4: upstreams.b.concurrency.limit: must be at most transport.max_connections",
        ],
    ),
    "concurrency and health that can't be": (
        with_upstream(
            "url: 'http://a', concurrency: {limit: 0, queue: -1, wait: 0}, "
            "health: {enabled: maybe, path: health, interval: 0, timeout: 0, failures: 0}"
        ),
        [
            "3: upstreams.there.concurrency.limit: must be more than 0",
            "3: upstreams.there.concurrency.queue: must be at least 0",
            "3: upstreams.there.concurrency.wait: must be more than 0",
            "3: upstreams.there.health.enabled: must be true or false",
            "3: upstreams.there.health.path: must begin with one /, in visible ASCII characters without spaces or #",
            "3: upstreams.there.health.interval: must be more than 0",
            "3: upstreams.there.health.timeout: must be more than 0",
            "3: upstreams.there.health.failures: must be more than 0",
        ],
    ),
    "replicas that can't be": (
        with_upstream(
            "balance: first, discovery: consul, "
            "urls: [{weight: 2}, {url: 'http://a', weight: 0}, {url: ftp://a}, {url: 'http://b', wait: 1}, [a], null]"
        ),
        [
            "3: upstreams.there.urls[0].url: required",
            "3: upstreams.there.urls[1].weight: must be more than 0",
            "3: upstreams.there.urls[2].url: must be an http:// or https:// URL with a host",
            "3: upstreams.there.urls[3].wait: unknown key; known here: url, weight",
            "3: upstreams.there.urls[4]: must be a URL, or a mapping with url and weight",
            "3: upstreams.there.urls[5]: has no value",
            "3: upstreams.there.discovery: not supported; supported here: none, dns",
            "3: upstreams.there.balance: not supported; supported here: least_load, round_robin, weighted",
        ],
    ),
    "the same URL with and without a weight": (
        with_upstream("urls: ['http://a/v1', {url: 'http://a/v1/', weight: 2}], balance: round_robin"),
        [
            "3: upstreams.there.urls[1]: the same URL as urls[0]",
            "3: upstreams.there.urls[1].weight: needs balance: least_load or weighted",
        ],
    ),
    "discovery of what is not a name": (
        (
            "auth: {required: false}\nupstreams:\n"
            "  a: {kind: openai, urls: ['http://a', 'http://b'], discovery: dns}\n"
            "  b: {kind: openai, url: 'http://10.0.0.1:8000/v1', discovery: dns}\n"
            "  c: {kind: openai, url: 'https://[::1]/v1', discovery: dns}\n"
            "  d: {kind: openai, url: 'http://d', discovery: dns, transport: {engine: httpx}}\n"
            "models: {m: {targets: [{upstream: a}]}}\n"
        ),
        [
            "3: upstreams.a.discovery: dns needs url, and not urls",
            "4: upstreams.b.discovery: dns needs a host name in url, and not an address",
            "5: upstreams.c.discovery: dns needs a host name in url, and not an address",
            "6: upstreams.d.discovery: dns needs transport.engine: own",
        ],
    ),
    "a misspelt setting": (
        with_extra("log: {Format: json}"),
        ["8: log.Format: unknown key; known here: format, level"],
    ),
    "a kind that is not there yet": (
        GOOD.replace("kind: openai", "kind: gemini"),
        [f"5: upstreams.openai.kind: not supported; supported here: {', '.join(KINDS)}"],
    ),
    "what goes with another kind": (
        (
            "auth: {required: false}\nupstreams:\n"
            "  a: {kind: vllm, url: 'http://a/v1', azure: {}}\n"
            "  b: {kind: openai, url: 'grpc://b:8001', template: /t, tensors: {seed: S}, max_tokens: 7, cumulative: yes}\n"
            "  c: {kind: qwen, urls: ['http://c/v1', {url: 'grpcs://c:1'}], load: {enabled: yes}}\n"
            "  d: {kind: openai, url: 'http://d', profile: python, load: {enabled: no}}\n"
            "models: {m: {targets: [{upstream: a}]}}\n"
        ),
        [
            "3: upstreams.a.azure: needs kind: openai",
            *(
                f"4: upstreams.b.{setting}: needs kind: triton"
                for setting in ("cumulative", "max_tokens", "template", "tensors")
            ),
            "4: upstreams.b.url: grpc:// needs kind: triton",
            "5: upstreams.c.urls[1].url: grpcs:// needs kind: triton",
            "5: upstreams.c.urls: must be all grpc:// or all http://",
            "5: upstreams.c.load.enabled: needs kind: vllm, triton, tgi, sglang, llamacpp",
            "6: upstreams.d.profile: needs kind: triton",
        ],
    ),
    "an Azure that can't be": (
        (
            "auth: {required: false}\nupstreams:\n"
            "  a: {kind: openai, url: 'https://a.openai.azure.com/openai/v1', azure: {api_version: 'a b'}}\n"
            "  b: {kind: openai, url: 'https://b', azure: {version: 1}}\n"
            "models: {m: {targets: [{upstream: a}]}}\n"
        ),
        [
            "3: upstreams.a.azure.api_version: must be visible ASCII characters without spaces, and not empty",
            "3: upstreams.a.url: with azure it must be the resource's URL, the part before /openai",
            "4: upstreams.b.azure.version: unknown key; known here: api_version",
        ],
    ),
    "a Triton that can't be": (
        (
            "auth: {required: false}\nupstreams:\n"
            "  a: {kind: triton, url: 'grpc://a', discovery: dns, transport: {engine: httpx}}\n"
            "  b: {kind: triton, url: 'grpc://b:8001/v2', profile: onnx, template: '', max_tokens: 0}\n"
            "  c: {kind: triton, url: 'http://c', tensors: {text_input: , prompt: P, seed: '', top_k: }}\n"
            "models: {m: {targets: [{upstream: a}]}}\n"
        ),
        [
            "3: upstreams.a.url: a grpc:// URL has a host, a port and no path",
            "3: upstreams.a.discovery: dns needs an http:// or https:// URL",
            "3: upstreams.a.transport.engine: httpx needs an http:// or https:// URL",
            "3: upstreams.a.discovery: dns needs transport.engine: own",
            "4: upstreams.b.profile: not supported; supported here: vllm_backend, tensorrtllm, python",
            "4: upstreams.b.template: must not be empty",
            "4: upstreams.b.max_tokens: must be more than 0",
            "4: upstreams.b.url: a grpc:// URL has a host, a port and no path",
            f"5: upstreams.c.tensors.prompt: no tensor means this; known here: {', '.join(sorted(TENSORS))}",
            "5: upstreams.c.tensors.seed: must not be empty",
            "5: upstreams.c.tensors.text_input: every model has this one: give its name",
        ],
    ),
    "a log format that is not there": (
        with_extra("log: {format: xml, level: loud}"),
        [
            "8: log.format: not supported; supported here: json, console",
            "8: log.level: not supported; supported here: debug, info, warning, error",
        ],
    ),
    "a setting without a value": (
        with_extra("server:\n  port:\n  drain_seconds: 1"),
        ["9: server.port: has no value"],
    ),
    "a section without a value": (with_extra("timeouts:\n  # idle: 5"), ["8: timeouts: has no value"]),
    "a port that is none": (
        with_extra("server:\n  port: http\n  admin_port: 65536"),
        ["9: server.port: must be a whole number", "10: server.admin_port: must be at most 65535"],
    ),
    "true for a port": (with_extra("server: {port: true}"), ["8: server.port: must be a whole number"]),
    "the same port twice": (
        with_extra("server:\n  port: 9000\n  admin_port: 9000"),
        ["10: server.admin_port: port and admin_port must not be the same"],
    ),
    "the admin port's default": (
        with_extra("server:\n  port: 8081"),
        ["9: server.port: port and admin_port must not be the same"],
    ),
    "a host with a port": (
        with_extra("server: {host: 'http://a/'}"),
        ["8: server.host: must be a host name or an address"],
    ),
    "times that can't be": (
        with_extra("timeouts:\n  connect: 0\n  idle: -1\n  total: .inf\n  stream: inf\n  ping: 5s\n  pool: nan"),
        [
            "9: timeouts.connect: must be more than 0",
            "10: timeouts.idle: must be more than 0",
            "11: timeouts.total: must be a number",
            "12: timeouts.stream: must be finite",
            "13: timeouts.ping: must be a number",
            "14: timeouts.pool: must be finite",
        ],
    ),
    "limits that can't be": (
        with_extra("server:\n  limits: {body_bytes: 1.5, url_bytes: 0, head_seconds: 0}\n  drain_seconds: -1"),
        [
            "9: server.limits.url_bytes: must be more than 0",
            "9: server.limits.head_seconds: must be more than 0",
            "9: server.limits.body_bytes: must be a whole number",
            "10: server.drain_seconds: must be at least 0",
        ],
    ),
    "no word of keys": (
        GOOD.partition("upstreams")[1] + GOOD.partition("upstreams")[2],
        ["1: auth.keys: auth is required and there is no key: add one, or set auth.required to false"],
    ),
    "no keys": (
        GOOD.replace('    - {name: search-team, key: "${SEARCH_TEAM_KEY}"}', "    []"),
        ["2: auth.keys: auth is required and there is no key: add one, or set auth.required to false"],
    ),
    "keys that are alike": (
        GOOD.replace("upstreams:", "    - {name: search-team, key: search-team-key}\nupstreams:"),
        ["4: auth.keys[1].name: the same name as auth.keys[0]", "4: auth.keys[1].key: the same key as auth.keys[0]"],
    ),
    "keys that are no good": (
        "auth:\n  keys:\n    - {name: '', key: short}\n    - {name: b, key: 'with a space'}\n    - {name: c}\n"
        "    - {name: d, key: long-enough, models: []}\n    - {name: e, key: [1], models: '*'}\n"
        "    - {name: f, key: other-enough, models: ['a*b', '']}\n" + GOOD[GOOD.index("upstreams") :],
        [
            "3: auth.keys[0].name: must not be empty",
            "3: auth.keys[0].key: must be at least 8 visible ASCII characters without spaces",
            "4: auth.keys[1].key: must be at least 8 visible ASCII characters without spaces",
            "5: auth.keys[2].key: required",
            "6: auth.keys[3].models: must not be empty",
            "7: auth.keys[4].key: must be text",
            "7: auth.keys[4].models: must be a list",
            "8: auth.keys[5].models[0]: a * may only be the last character of a name",
            "8: auth.keys[5].models[1]: a model's name is 1 to 256 characters without spaces, dollar signs or braces",
        ],
    ),
    "an upstream's empty key": (
        with_upstream("url: 'http://a', api_key: '', organization: 'a b', project: é"),
        [
            "3: upstreams.there.api_key: must be visible ASCII characters without spaces, and not empty",
            "3: upstreams.there.organization: must be visible ASCII characters without spaces, and not empty",
            "3: upstreams.there.project: must be visible ASCII characters without spaces, and not empty",
        ],
    ),
    "no URL": (
        with_upstream("api_key: abc"),
        ["3: upstreams.there.url: required: give url, or urls for several replicas"],
    ),
    "no URL in the list": (
        with_upstream("urls: []"),
        ["3: upstreams.there.url: required: give url, or urls for several replicas"],
    ),
    "both url and urls": (
        with_upstream("url: 'http://a', urls: ['http://b']"),
        ["3: upstreams.there.urls: give either url or urls"],
    ),
    "the same URL twice": (
        with_upstream("urls: ['http://a/v1', 'http://a/v1/']"),
        ["3: upstreams.there.urls[1]: the same URL as urls[0]"],
    ),
    "URLs that can't be": (
        (
            "auth: {required: false}\nupstreams:\n  there:\n    kind: openai\n    urls:\n"
            "      - ftp://a\n      - http://\n      - a.example/v1\n      - http://a:0/\n      - http://a:99999/\n"
            "      - http://[::1/\n      - http://user:word@a/\n      - http://a/?b=c\n      - 'http://a/#b'\n"
            "      - http://a b/\n      - http://bücher.example/\n      - http://a,b/\n      - http://[127.0.0.1]/\n      - http://-a.b/\nmodels: {m: {targets: [{upstream: there}]}}\n"
        ),
        [
            *(
                f"{6 + index}: upstreams.there.urls[{index}]: must be an http:// or https:// URL with a host"
                for index in range(6)
            ),
            "12: upstreams.there.urls[6]: must not hold a user or a password",
            "13: upstreams.there.urls[7]: must not have a query or a fragment",
            "14: upstreams.there.urls[8]: must not have a query or a fragment",
            "15: upstreams.there.urls[9]: must be an http:// or https:// URL with a host",
            *(
                f"{6 + index}: upstreams.there.urls[{index}]: must be an http:// or https:// URL with a host"
                for index in range(10, 14)
            ),
        ],
    ),
    "transport settings that do not go together": (
        with_upstream("url: 'http://a', transport: {client_key: a, proxy: 'http://b'}"),
        [
            "3: upstreams.there.transport.client_key: needs client_cert",
            "3: upstreams.there.transport.proxy: needs engine: httpx",
        ],
    ),
    "transport settings that can't be": (
        with_upstream(
            "url: 'http://a', transport: {max_connections: 0, engine: best, proxy: 'socks5://b', ca_file: ''}"
        ),
        [
            "3: upstreams.there.transport.max_connections: must be more than 0",
            "3: upstreams.there.transport.ca_file: must not be empty",
            "3: upstreams.there.transport.engine: not supported; supported here: own, httpx",
            "3: upstreams.there.transport.proxy: must be an http:// or https:// URL with a host",
        ],
    ),
    "an upstream's bad timeout": (
        with_upstream("url: 'http://a', timeouts: {idle: 0, retries: 1}"),
        [
            "3: upstreams.there.timeouts.idle: must be more than 0",
            (
                "3: upstreams.there.timeouts.retries: unknown key; "
                "known here: connect, pool, write, first_token, reply, idle, total, stream, ping"
            ),
        ],
    ),
    "upstream names that can't be labels": (
        (
            "auth: {required: false}\nupstreams:\n  OpenAI: {kind: openai, url: 'http://a'}\n"
            "  unknown: {kind: openai, url: 'http://a'}\nmodels: {m: {targets: [{upstream: unknown}]}}\n"
        ),
        [
            f"{line}: upstreams.{name}: must match [a-z0-9][a-z0-9_-]{{0,62}}, and not be unknown"
            for line, name in ((3, "OpenAI"), (4, "unknown"))
        ],
    ),
    "model names that can't be": (
        GOOD + "  unknown: {targets: [{upstream: openai}]}\n  a*b: {targets: [{upstream: openai}]}\n"
        "  'a b': {targets: [{upstream: openai}]}\n  '${NAME}': {targets: [{upstream: openai}]}\n",
        [
            "8: models.unknown: the name unknown is reserved",
            '9: models."a*b": a * may only be the last character of a name',
            "10: models.?: a model's name is 1 to 256 characters without spaces, dollar signs or braces",
            "11: models.?: a model's name is 1 to 256 characters without spaces, dollar signs or braces",
        ],
    ),
    "targets that go nowhere": (
        GOOD + "  a: {targets: [{upstream: opena1}]}\n  b: {targets: []}\n  c: {}\n  d: {targets: [{}]}\n"
        "  gpt-4.1: {targets: [{upstream: openai, weight: 0}]}\n  f: {targets: [{upstream: openai, weight: -1}]}\n"
        "  g: {targets: [{upstream: openai, model: ''}]}\n  h:\n  i: [openai]\n",
        [
            "8: models.a.targets[0].upstream: no upstream has this name",
            "9: models.b.targets: must not be empty",
            "10: models.c.targets: required",
            "11: models.d.targets[0].upstream: required",
            '12: models."gpt-4.1".targets: at least one target needs a weight above 0',
            "13: models.f.targets[0].weight: must be at least 0",
            "14: models.g.targets[0].model: must not be empty",
            "15: models.h: has no value",
            "16: models.i: must be a mapping",
        ],
    ),
    "no upstreams and no models": (
        "auth: {required: false}\nupstreams: {}\nmodels: {}\n",
        ["2: upstreams: must not be empty", "3: models: must not be empty"],
    ),
    "nothing": (
        "# to do\n",
        [
            "1: upstreams: required",
            "1: models: required",
            "1: auth.keys: auth is required and there is no key: add one, or set auth.required to false",
        ],
    ),
    "a list": ("- a\n- b\n", ["1: must be a mapping"]),
    "a word": ("hello\n", ["1: must be a mapping"]),
    "a key given twice": (
        GOOD + "log: {level: info}\nlog: {level: loud}\n",
        ["9: log: given twice, first on line 8"],
    ),
    "a key given twice, deep down": (
        GOOD.replace("kind: openai,", "kind: openai, kind: openai,"),
        ["5: upstreams.openai.kind: given twice, first on line 5"],
    ),
    "a merge key": (
        with_extra("timeouts: &t {idle: 1}\nserver: {<<: *t}"),
        ["9: server: merge keys (<<) are not supported"],
    ),
    "a key that is a list": (with_extra("[a, b]: c"), ["8: a key must be plain text"]),
    "a tag": (
        with_extra("log: {level: !secret abc, format: !!python/name:os.system ''}"),
        ["8: log.level: tags are not supported", "8: log.format: tags are not supported"],
    ),
    "control characters": (
        GOOD.replace("gpt-4o-mini:", '"gpt\\u0007": {targets: [{upstream: openai}]}\n  m:').replace(
            "search-team,", '"a\\nb",'
        ),
        [
            "3: auth.keys[0].name: must be one line of text, without control characters",
            "7: models: a key must be plain text",
        ],
    ),
    "half a character": (
        GOOD.replace("search-team,", '"a\\ud800b",'),
        ["3: auth.keys[0].name: must be one line of text, without control characters"],
    ),
    "a bracket that is not closed": (
        GOOD.replace("[{upstream: openai}]}", "[{upstream: openai}"),
        ["8: not valid YAML: expected ',' or ']', but got '<stream end>'"],
    ),
    "a tab": (
        GOOD.replace("  openai:", "\topenai:"),
        ["5: not valid YAML: found character '\\t' that cannot start any token"],
    ),
    "a quote that is not closed": (
        GOOD.replace("gateway.com/v1", "x").replace('v1", api', "v1, api"),
        ["5: not valid YAML: expected ',' or '}', but got '<scalar>'"],
    ),
    "an alias of nothing": (with_extra("log: *sk-abcdef"), ["8: not valid YAML: found undefined alias"]),
    "two documents": (GOOD + "---\na: b\n", ["8: not valid YAML: found another document"]),
    "a control character": ("a: b\nc: \x00\n", ["2: not valid YAML: a character that is not allowed"]),
    "an alias within itself": (
        "models: &a\n  b: *a\n",
        ["1: not valid YAML: too deep, too large, or an alias within itself"],
    ),
    "a billion laughs": (
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        ["1: not valid YAML: too deep, too large, or an alias within itself"],
    ),
    "brackets without end": (
        "[" * 500,
        ["1: not valid YAML: too deep, too large, or an alias within itself"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_each_mistake_is_told_with_its_line_and_path(case: str) -> None:
    text, expected = BAD[case]
    assert mistakes(text) == expected


def test_mistakes_of_every_sort_are_told_at_once() -> None:
    text = """\
        server: {port: eighty, admin_port: 8081}
        auth:
          keys:
            - {name: a, key: "${MISSING}"}
            - {name: a, key: short}
        upstreams:
          openai: {kind: gemini, url: "ftp://x", api_key: "${MISSING}"}
          Bad: {kind: openai}
        models:
          gpt-4.1:
            targets:
              - {upstream: opena, weight: 0}
        timeouts: {idle: 0}
        timeouts: {idle: 0}
        retries: {attempts: 3}
        """
    assert mistakes(text) == [
        "1: server.port: must be a whole number",
        "4: auth.keys[0].key: the environment variable MISSING is not set",
        "5: auth.keys[1].key: must be at least 8 visible ASCII characters without spaces",
        "5: auth.keys[1].name: the same name as auth.keys[0]",
        "7: upstreams.openai.api_key: the environment variable MISSING is not set",
        f"7: upstreams.openai.kind: not supported; supported here: {', '.join(KINDS)}",
        "7: upstreams.openai.url: must be an http:// or https:// URL with a host",
        "8: upstreams.Bad: must match [a-z0-9][a-z0-9_-]{0,62}, and not be unknown",
        "8: upstreams.Bad.url: required: give url, or urls for several replicas",
        '11: models."gpt-4.1".targets: at least one target needs a weight above 0',
        '12: models."gpt-4.1".targets[0].upstream: no upstream has this name',
        "13: timeouts.idle: must be more than 0",
        "14: timeouts: given twice, first on line 13",
        f"15: retries: unknown key; known here: {KNOWN_AT_TOP}",
    ]


def test_a_file_that_can_not_be_read_is_one_line() -> None:
    Path("folder").mkdir()
    Path("latin.yaml").write_bytes(b"a: b\nc: caf\xe9\n")
    Path("large.yaml").write_bytes(b"#" * 2_000_000)
    for name, expected in {
        "none.yaml": "none.yaml: No such file or directory",
        "folder": "folder: Is a directory",
        "latin.yaml": "latin.yaml:2: not UTF-8",
        "large.yaml": "large.yaml: over 1048576 bytes",
        "a\0b": "the config file's name is not a path",
    }.items():
        with pytest.raises(ConfigError) as caught:
            load(Path(name), ENVIRON)
        assert caught.value.mistakes == (expected,)


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    assert loaded("\ufeff" + GOOD).upstreams


# --- secrets ------------------------------------------------------------------------------------------------------

SECRETS = ("sk-planted-1-callers", "sk-planted-2-upstream", "sk-planted-3-proxy", "sk-planted-4-variable", "pLanted5")


def test_no_secret_is_in_the_repr_of_settings_or_in_their_json() -> None:
    one, two, three, four, five = SECRETS
    config = loaded(
        f"""\
        auth: {{keys: [{{name: a, key: {one}}}, {{name: b, key: "${{FOUR}}"}}]}}
        upstreams:
          a: {{kind: openai, url: "http://a", api_key: {two},
              transport: {{engine: httpx, proxy: "http://{five}:{three}@p"}}}}
        models: {{m: {{targets: [{{upstream: a}}]}}}}
        """,
        {"FOUR": four},
    )
    for shown in (repr(config), str(config), config.model_dump_json(), str(config.model_dump()), str(schema())):
        assert not [secret for secret in SECRETS if secret in shown]
    assert config.auth.keys[1].key.get_secret_value() == four


@pytest.mark.parametrize(
    "where",
    [
        "server: {port: SECRET}",
        "server: {host: SECRET/}",
        "server: SECRET",
        "log: {level: SECRET}",
        "log: {SECRET: a}",
        "log: {level:SECRET}",
        "log: *SECRET",
        "log: &SECRET",
        "log: !SECRET x",
        "log: !SECRET!SECRET x",
        "SECRET",
        "SECRET:",
        "? [SECRET]",
        '"SECRET',
        "'SECRET",
        "[SECRET",
        "{SECRET",
        "%SECRET",
        "@SECRET",
        "- SECRET",
        "timeouts: SECRET: SECRET",
        'log: {level: "\\SECRET"}',
        'log: {level: "\\xSECRET"}',
        "log: {level: '${SECRET}x'}",
        "log: {level: '${VARIABLE}'}",
        "log: {level: '${NONE:-SECRET}'}",
        "timeouts: {idle: '${VARIABLE}'}",
        "auth: {keys: [{name: SECRET, name: SECRET}]}",
        "auth: {keys: [{name: a, key:SECRET}]}",
        "auth: {keys: [SECRET]}",
        "auth: {keys: SECRET}",
        "auth: {keys: {SECRET: SECRET}}",
        "auth: {required: SECRET}",
        "upstreams: {a: {kind: SECRET, url: 'SECRET', api_key: {SECRET: SECRET}}}",
        "upstreams: {a: {kind: openai, url: 'http://SECRET@a?SECRET'}}",
        "upstreams: {a: {kind: openai, url: 'http://a:SECRET/'}}",
        "upstreams: {a: {kind: openai, url: 'http://[SECRET/', api_key: 'SECRET SECRET'}}",
        "upstreams: {a: {kind: openai, api_key:SECRET}}",
        "upstreams: {a: {kind: openai, transport: {proxy: 'socks5://SECRET@a', engine: SECRET}}}",
        "upstreams: {'SECRET key': {}}",
        "models: {'SECRET key': SECRET}",
        "models: {m: {targets: [{upstream: SECRET, weight: SECRET}]}}",
        "models: {m: {targets: {SECRET: SECRET}}}",
        "models: {m: {SECRET: SECRET}}",
        "models: {m: {fallbacks: [SECRET, SECRET], hedge: {after: SECRET}}}",
        "models: {m: {fallbacks: SECRET, hedge: SECRET}}",
        "upstreams: {a: {kind: openai, urls: [{url: SECRET, weight: SECRET, SECRET: SECRET}, 'http://SECRET@a', [SECRET]]}}",
        "upstreams: {a: {kind: openai, url: 'http://SECRET:a/', discovery: dns, balance: SECRET}}",
        "upstreams: {a: {kind: openai, health: {path: SECRET, enabled: SECRET}, concurrency: {limit: SECRET}}}",
        "retry: {base: 1, cap: SECRET, budget: SECRET}",
        "breaker: SECRET",
    ],
)
@pytest.mark.parametrize("secret", ["sk-Planted-1234", "planted-without-digits"])
def test_no_mistake_repeats_a_secret_wherever_it_was_put(where: str, secret: str) -> None:
    path = Path("gateway.yaml")
    path.write_text("a: b\n" + where.replace("SECRET", secret) + "\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(path, {"VARIABLE": secret})
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert secret not in shown
    assert "planted" not in shown.lower()


# --- junk ---------------------------------------------------------------------------------------------------------

SECTIONS = st.sampled_from(
    ["server", "auth", "keys", "upstreams", "models", "targets", "timeouts", "log", "kind", "url"]
)
SETTINGS = st.sampled_from(
    [
        "fallbacks",
        "hedge",
        "after",
        "retry",
        "base",
        "cap",
        "breaker",
        "urls",
        "weight",
        "discovery",
        "balance",
        "concurrency",
        "limit",
        "transport",
        "health",
        "path",
        "azure",
        "tensors",
        "template",
        "load",
        "enabled",
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["${A}", "*"])
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(SECTIONS | SETTINGS | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=25,
)
QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def only_config_errors(text: str) -> None:
    path = Path("junk.yaml")
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    told = ["junk.yaml: good"]
    try:
        load(path, {"A": "1"})
    except ConfigError as failure:
        told = list(failure.mistakes)
    assert told
    assert all(mistake.startswith("junk.yaml:") and "\n" not in mistake for mistake in told)


@QUICK
@given(TREES)
@example({"upstreams": {"a": {"urls": [[], {}, None]}}, "models": {"m": {"targets": [None, {"weight": {}}]}}})
@example({"auth": {"keys": [[], {"key": {}}, {"key": {}}], "required": {}}, "server": {"port": [], "admin_port": []}})
@example({"auth": {"keys": "text", "required": None}})
@example(
    {"models": {"m": {"fallbacks": [[], {}, None, "*"], "hedge": {"after": {}}}, "n": {"hedge": {"after": [None]}}}}
)
@example({"upstreams": {"a": {"urls": [{"url": {}, "weight": []}], "discovery": "dns", "balance": "round_robin"}}})
@example({"upstreams": {"a": {"url": "http://[", "discovery": "dns", "concurrency": {"limit": "inf"}}}})
def test_junk_of_the_right_shape_is_a_config_error(tree: Any) -> None:
    only_config_errors(yaml.safe_dump(tree, allow_unicode=True))


@QUICK
@given(st.text(max_size=60) | st.text(alphabet="a:-[]{},&*!|>'\"%@`#? \n\t$", max_size=40))
@example("\x85")
@example("a: \u2028b")
@example("? ? ?")
@example("%YAML 9.9\n---\n")
def test_junk_text_is_a_config_error(text: str) -> None:
    only_config_errors(text)


@QUICK
@given(st.integers(0, len(GOOD)), st.integers(0, len(GOOD)), st.sampled_from(list("a:-[]{},&*!|'\"\n \t$")))
def test_a_file_with_a_slip_of_the_hand_is_good_or_a_config_error(start: int, end: int, typed: str) -> None:
    only_config_errors(GOOD[: min(start, end)] + typed + GOOD[max(start, end) :])


@QUICK
@given(st.text(max_size=30))
def test_what_a_variable_holds_never_becomes_structure(value: str) -> None:
    document = read('a: "${V}"\nb: x-${V}\n', {"V": value})
    assert document.data == {"a": value, "b": f"x-{value}"}


# --- from the environment alone -----------------------------------------------------------------------------------


def test_an_openai_key_in_the_environment_serves_every_model_to_this_machine_only() -> None:
    config = from_environment({"OPENAI_API_KEY": "sk-of-the-gateway"})
    assert config.upstreams["openai"].replicas == (("https://api.openai.com/v1", 1.0),)
    assert config.upstreams["openai"].api_key is not None
    assert config.upstreams["openai"].api_key.get_secret_value() == "sk-of-the-gateway"
    assert list(config.models) == ["*"]
    assert not config.auth.required
    assert config.server.host == config.server.admin_address == "127.0.0.1"
    assert announcement(config) == [
        'no config file, so from the environment: every model ("*") goes to https://api.openai.com',
        "GATEWAY_KEY is not set: auth is off, and only 127.0.0.1 is listened on",
    ]


def test_a_gateway_key_in_the_environment_is_the_callers_key() -> None:
    config = from_environment(
        {
            "OPENAI_API_KEY": "sk-of-the-gateway",
            "GATEWAY_KEY": "sk-of-the-callers",
            "OPENAI_BASE_URL": "http://localhost:9000/secret-path/v1/",
        }
    )
    assert config.auth.required
    assert [(key.name, key.key.get_secret_value()) for key in config.auth.keys] == [("default", "sk-of-the-callers")]
    assert config.server.host == "0.0.0.0"
    assert config.upstreams["openai"].replicas == (("http://localhost:9000/secret-path/v1", 1.0),)
    assert announcement(config) == [
        'no config file, so from the environment: every model ("*") goes to http://localhost:9000',
        "callers must send GATEWAY_KEY",
    ]


def everything(**environ: str) -> dict[str, str]:
    return {
        "OPENAI_API_KEY": "sk-planted-openai",
        "DASHSCOPE_API_KEY": "sk-planted-qwen",
        "VLLM_URL": "http://v-0:8000, http://v-1:8000/",
        "TRITON_URL": "grpc://triton:8001",
        "TRITON_MODEL": "ensemble",
        "TRITON_TEMPLATE": "/models/qwen",
        **environ,
    }


def routes(config: Settings) -> dict[str, str]:
    return {name: model.targets[0].upstream for name, model in config.models.items()}


def test_each_variable_brings_its_upstream_and_what_it_serves() -> None:
    asked: list[Upstream] = []

    def listing(upstream: Upstream) -> list[str]:
        asked.append(upstream)
        return ["b", "a", "with a space", "pattern*", "unknown", "ensemble", "x" * 300]

    config = from_environment(everything(VLLM_API_KEY="sk-planted-vllm", TRITON_PROFILE="tensorrtllm"), listing)
    assert {name: upstream.kind for name, upstream in config.upstreams.items()} == {
        name: name for name in ("triton", "vllm", "qwen", "openai")
    }
    assert routes(config) == {"a": "vllm", "b": "vllm", "ensemble": "triton", "qwen*": "qwen", "*": "openai"}
    triton, vllm, qwen, _ = config.upstreams.values()
    assert (triton.url, triton.template, triton.profile) == ("grpc://triton:8001", "/models/qwen", "tensorrtllm")
    assert vllm.replicas == (("http://v-0:8000/v1", 1.0), ("http://v-1:8000/v1", 1.0))
    assert qwen.url == "https://dashscope.aliyuncs.com/compatible-mode/v1"
    assert [upstream.replicas for upstream in asked] == [vllm.replicas]
    assert vllm.api_key is not None
    assert vllm.api_key.get_secret_value() == "sk-planted-vllm"
    told = announcement(config)
    assert told[0] == (
        "no config file, so from the environment: a, b go to http://v-0:8000 and http://v-1:8000; "
        "ensemble goes to grpc://triton:8001; qwen* goes to https://dashscope.aliyuncs.com; "
        'every other model ("*") goes to https://api.openai.com'
    )
    assert "planted" not in "".join(told)


def test_without_openai_a_vllm_serves_what_nobody_else_does_and_is_asked_nothing() -> None:
    def listing(_: Upstream) -> list[str]:
        raise AssertionError("not asked")

    config = from_environment({"VLLM_URL": "http://v/base/v1", "DASHSCOPE_API_KEY": "k"}, listing)
    assert config.upstreams["vllm"].replicas == (("http://v/base/v1", 1.0),)
    assert routes(config) == {"qwen*": "qwen", "*": "vllm"}
    assert announcement(config)[0].endswith('; every other model ("*") goes to http://v')


def test_what_nobody_serves_is_told() -> None:
    config = from_environment({"TRITON_URL": "http://t:8000", "TRITON_MODEL": "llm", "GATEWAY_KEY": "long-enough"})
    assert routes(config) == {"llm": "triton"}
    assert announcement(config) == [
        "no config file, so from the environment: llm goes to http://t:8000; no other model is served",
        "TRITON_TEMPLATE is not set: triton serves completions, and no chat",
        "callers must send GATEWAY_KEY",
    ]


def test_many_models_are_told_by_the_first_and_their_number() -> None:
    environ = {"VLLM_URL": "http://v", "OPENAI_API_KEY": "k", "DASHSCOPE_BASE_URL": "https://unused"}
    config = from_environment(environ, lambda _: [f"m{number}" for number in range(9)])
    assert announcement(config)[0].startswith(
        "no config file, so from the environment: m0, m1, m2, m3, m4, 4 more go to http://v; "
    )


def test_where_nobody_may_ask_a_vllm_beside_openai_has_no_models_yet() -> None:
    assert routes(from_environment({"VLLM_URL": "http://v", "OPENAI_API_KEY": "k"})) == {"*": "openai"}


def test_a_vllm_that_does_not_tell_its_models_is_one_line() -> None:
    def listing(_: Upstream) -> list[str]:
        raise ConfigError(["does not tell"])

    with pytest.raises(ConfigError) as caught:
        from_environment({"VLLM_URL": "http://v", "OPENAI_API_KEY": "k"}, listing)
    assert caught.value.mistakes == ("VLLM_URL: does not tell",)


NONE_OF_THEM = (
    "no config file and none of OPENAI_API_KEY, DASHSCOPE_API_KEY, VLLM_URL, TRITON_URL: "
    "name a file with --config or GATEWAY_CONFIG, or set one of them"
)
NO_URL = "must be an http:// or https:// URL with a host"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, [NONE_OF_THEM]),
        (dict.fromkeys(["OPENAI_API_KEY", "DASHSCOPE_API_KEY", "VLLM_URL", "TRITON_URL"], ""), [NONE_OF_THEM]),
        ({"TRITON_MODEL": "m", "GATEWAY_KEY": "long-enough"}, [NONE_OF_THEM]),
        (
            {"OPENAI_API_KEY": "a b", "OPENAI_BASE_URL": "ftp://x", "GATEWAY_KEY": "short"},
            [
                "GATEWAY_KEY: must be at least 8 visible ASCII characters without spaces",
                f"OPENAI_BASE_URL: {NO_URL}",
                "OPENAI_API_KEY: must be visible ASCII characters without spaces, and not empty",
            ],
        ),
        (
            {"DASHSCOPE_API_KEY": "a b", "DASHSCOPE_BASE_URL": "grpc://x:1"},
            [
                "DASHSCOPE_API_KEY: must be visible ASCII characters without spaces, and not empty",
                "DASHSCOPE_BASE_URL: grpc:// needs kind: triton",
            ],
        ),
        ({"VLLM_URL": "v:8000"}, [f"VLLM_URL: {NO_URL}"]),
        ({"VLLM_URL": "http://v,http://v/"}, ["VLLM_URL: the same URL as urls[0]"]),
        ({"VLLM_URL": " , "}, ["VLLM_URL: required: give url, or urls for several replicas"]),
        (
            {"VLLM_URL": "http://v", "VLLM_API_KEY": "a b"},
            ["VLLM_API_KEY: must be visible ASCII characters without spaces, and not empty"],
        ),
        ({"TRITON_URL": "http://t"}, ["TRITON_URL: needs TRITON_MODEL, the name of the model to serve"]),
        (
            {"TRITON_URL": "t", "TRITON_MODEL": "a b", "TRITON_PROFILE": "onnx"},
            [
                f"TRITON_URL: {NO_URL}",
                "TRITON_PROFILE: not supported; supported here: vllm_backend, tensorrtllm, python",
                "TRITON_MODEL: a model's name is 1 to 256 characters without spaces, dollar signs or braces",
            ],
        ),
    ],
)
def test_mistakes_in_the_environment_are_told_by_variable(environ: dict[str, str], expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_environment(environ)
    assert list(caught.value.mistakes) == expected


def test_the_file_is_the_named_one_or_the_environments_or_the_one_found_here() -> None:
    assert find(Path("named.yaml"), {"GATEWAY_CONFIG": "other.yaml"}) == Path("named.yaml")
    assert find(None, {"GATEWAY_CONFIG": "other.yaml"}) == Path("other.yaml")
    assert find(None, {"GATEWAY_CONFIG": ""}) is None
    Path("gateway.yaml").write_text(GOOD, encoding="utf-8")
    assert find(None, {}) == Path("gateway.yaml")


# --- addresses from the command line ------------------------------------------------------------------------------


def test_options_move_the_listener() -> None:
    moved = listening(loaded(GOOD), host="localhost", port=9000, admin_port=None)
    assert (moved.server.host, moved.server.port, moved.server.admin_port) == ("localhost", 9000, 8081)
    assert moved.server.limits == LimitsConfig()


def test_options_that_make_no_sense_are_told() -> None:
    config = loaded(GOOD)
    with pytest.raises(ConfigError, match=r"--port, --admin-port: port and admin_port must not be the same"):
        listening(config, host=None, port=8081, admin_port=None)
    with pytest.raises(ConfigError, match=r"--host: must be a host name or an address"):
        listening(config, host="a b", port=None, admin_port=None)


def test_without_a_key_and_a_file_only_this_machine_may_call() -> None:
    config = from_environment({"OPENAI_API_KEY": "sk-of-the-gateway"})
    assert listening(config, host="::1", port=None, admin_port=None, exposable=False).server.host == "::1"
    for host in ("0.0.0.0", "10.0.0.1", "gateway.example"):
        with pytest.raises(ConfigError, match="with auth off only this machine may call"):
            listening(config, host=host, port=None, admin_port=None, exposable=False)


@pytest.mark.parametrize(
    ("port", "admin_port", "environ", "expected"),
    [
        (None, None, {}, (8080, 8081)),
        (None, None, {"PORT": "9000"}, (9000, 9001)),
        (7000, None, {"PORT": "9000"}, (7000, 7001)),
        (7000, 9, {}, (7000, 9)),
        (0, None, {}, (0, 0)),
        (None, None, {"PORT": ""}, (8080, 8081)),
    ],
)
def test_the_demo_takes_two_ports_side_by_side(
    port: int | None, admin_port: int | None, environ: dict[str, str], expected: tuple[int, int]
) -> None:
    assert demo_ports(port, admin_port, environ) == expected


@pytest.mark.parametrize(
    ("port", "admin_port", "environ", "expected"),
    [
        (None, None, {"PORT": "http"}, "PORT: must be a port, 0 to 65535"),
        (None, None, {"PORT": "65536"}, "PORT: must be a port, 0 to 65535"),
        (65535, None, {}, "--admin-port: there is none after 65535, so it must be given"),
        (9, 9, {}, "--port, --admin-port: must not be the same"),
    ],
)
def test_the_demos_ports_must_be_two(
    port: int | None, admin_port: int | None, environ: dict[str, str], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        demo_ports(port, admin_port, environ)


# --- the schema ---------------------------------------------------------------------------------------------------


def test_every_setting_is_described_in_the_schema() -> None:
    made = schema()
    assert made["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for name, section in {"Settings": made, **made["$defs"]}.items():
        assert section["additionalProperties"] is False
        for setting, said in section["properties"].items():
            described = made["$defs"][said["$ref"].rpartition("/")[2]] if "$ref" in said else said
            assert described.get("description"), f"{name}.{setting}"


def test_the_schema_lets_a_variable_stand_for_a_number_or_a_word() -> None:
    made = schema()["$defs"]
    settings = ("Server", "port"), ("Timeouts", "idle"), ("Auth", "required"), ("Log", "level"), ("Upstream", "balance")
    for section, setting in settings:
        assert {"type": "string", "pattern": r"\$\{"} in made[section]["properties"][setting]["anyOf"]


def test_the_schema_takes_a_replica_as_its_url_alone() -> None:
    made = schema()["$defs"]
    assert made["Upstream"]["properties"]["urls"]["items"] == {
        "anyOf": [{"type": "string"}, {"$ref": "#/$defs/Replica"}]
    }
    assert made["Replica"]["required"] == ["url"]
