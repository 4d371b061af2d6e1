"""What engines say of their load: read from pages of theirs, kept while it is fresh, and told in our own metrics."""

import asyncio
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway import load
from gateway.admission import ConcurrencySettings
from gateway.assembly import build_fleet, readings
from gateway.config import Load as LoadConfig
from gateway.config import Settings
from gateway.dialects import DIALECTS, Dialect
from gateway.fleet import Endpoint, Replica, Rules, Timeouts, Upstream
from gateway.kinds import KINDS, Figures, UpstreamKind
from gateway.load import LARGEST, REST, LoadSettings, LoadWatch, Said, read
from gateway.observe.upstreams import families
from gateway.policy.balance import LeastLoad
from gateway.policy.breaker import Breaker, BreakerSettings
from gateway.policy.retry import RetrySettings
from tests.support.stage import Chance

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen/Qwen3-32B"} 3.0
vllm:num_requests_running{engine="1",model_name="Qwen/Qwen3-32B"} 4.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="a \\"b\\" } 7"} 1.0
vllm:num_requests_waiting{engine="1",model_name="Qwen/Qwen3-32B"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="Qwen/Qwen3-32B"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="Qwen/Qwen3-32B"} 0.75
vllm:prompt_tokens_total{engine="0"} 1.2e+06
"""
PAGES: dict[UpstreamKind, tuple[str, Said]] = {
    "vllm": (VLLM, Said(7.0, 1.0, 0.75)),
    "sglang": (
        (
            'sglang:num_running_reqs{model_name="m"} 12.0\nsglang:token_usage{model_name="m"} 0.28\n'
            'sglang:num_queue_reqs{model_name="m"} 826.0\nsglang:cache_hit_rate{model_name="m"} 0.007\n'
        ),
        Said(12.0, 826.0, 0.28),
    ),
    "tgi": (
        "# TYPE tgi_queue_size gauge\ntgi_queue_size 2\n\n# TYPE tgi_batch_current_size gauge\ntgi_batch_current_size 5\n",
        Said(5.0, 2.0, None),
    ),
    "llamacpp": (
        (
            "# HELP llamacpp:requests_processing Number of requests processing.\nllamacpp:requests_processing 1\n"
            "llamacpp:requests_deferred 4\nllamacpp:kv_cache_usage_ratio 0.5\n"
        ),
        Said(1.0, 4.0, None),
    ),
    "triton": (
        (
            "# TYPE nv_inference_count counter\n"
            'nv_inference_count{model="a",version="1"} 30\nnv_inference_count{model="b",version="1"} 10\n'
            'nv_inference_exec_count{model="a",version="1"} 6\nnv_inference_exec_count{model="b",version="1"} 4\n'
            'nv_inference_request_success{model="a",version="1"} 30\n'
            'nv_inference_pending_request_count{model="a",version="1"} 5\n'
            'nv_inference_pending_request_count{model="b",version="1"} 0\n'
        ),
        Said(None, 5.0, None, (40.0, 10.0)),
    ),
}


def figures(kind: UpstreamKind = "vllm") -> Figures:
    found = KINDS[kind].figures
    assert found is not None
    return found


# --- a page -------------------------------------------------------------------------------------------------------


def test_every_kind_whose_engine_can_tell_has_a_page_here() -> None:
    assert set(PAGES) == {kind for kind, traits in KINDS.items() if traits.figures is not None}


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_says_what_runs_what_waits_and_how_full_the_cache_is(kind: UpstreamKind) -> None:
    page, said = PAGES[kind]
    assert read(page.encode(), figures(kind)) == said
    assert read(page.replace("\n", "\r\n").encode(), figures(kind)) == said
    assert read(page.rstrip().encode(), figures(kind)) == said


def test_an_older_name_is_read_where_the_newer_is_not_there() -> None:
    older = VLLM.replace("kv_cache_usage_perc", "gpu_cache_usage_perc")
    assert read(older.encode(), figures()) == Said(7.0, 1.0, 0.75)
    both = older + "vllm:kv_cache_usage_perc 0.5\n"
    assert read(both.encode(), figures()) == Said(7.0, 1.0, 0.5)


def test_a_cache_that_is_not_told_of_is_not_known_and_one_over_full_is_full() -> None:
    least = "vllm:num_requests_running 1\nvllm:num_requests_waiting 2 1700000000000\n"
    assert read(least.encode(), figures()) == Said(1.0, 2.0, None)
    assert read(f"{least}vllm:kv_cache_usage_perc 1.5".encode(), figures()) == Said(1.0, 2.0, 1.0)


@pytest.mark.parametrize(
    "page",
    [
        "",
        "<html>vllm:num_requests_running 1</html>",
        "vllm:num_requests_running 1",
        "vllm:num_requests_waiting 1",
        "vllm:num_requests_running 1\nvllm:num_requests_waiting_by_reason 1",
        "vllm:num_requests_running 1\nxvllm:num_requests_waiting 1",
        "vllm:num_requests_running 1\nvllm:num_requests_waiting NaN",
        "vllm:num_requests_running 1\nvllm:num_requests_waiting +Inf",
        "vllm:num_requests_running 1\nvllm:num_requests_waiting -1",
        "vllm:num_requests_running 1\nvllm:num_requests_waiting many",
        "vllm:num_requests_running 1\nvllm:num_requests_waiting\n7",
        'vllm:num_requests_running 1\nvllm:num_requests_waiting{a="b"',
        'vllm:num_requests_running 1\nvllm:num_requests_waiting{a="b"}',
        "vllm:num_requests_running 1\nvllm:num_requests_waiting }2",
    ],
)
def test_a_page_without_both_figures_says_nothing(page: str) -> None:
    assert read(page.encode(), figures()) is None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80) | st.text(alphabet='vllm:num_requests_waiting{}" 01.e\n', max_size=80).map(str.encode))
@example(b"\xff\xfe")
def test_junk_is_figures_or_nothing(junk: bytes) -> None:
    for page in (junk, b"vllm:num_requests_running 1\nvllm:num_requests_waiting" + junk):
        said = read(page, figures())
        assert said is None or (said.running or 0.0) >= 0 <= said.waiting


# --- the watch ----------------------------------------------------------------------------------------------------


class Scene:
    """An upstream whose engines answer as `answers` says at the moment, by host."""

    def __init__(
        self,
        *hosts: str,
        chance: float = 0.5,
        interval: float = 1.5,
        kind: UpstreamKind = "vllm",
        port: int | None = None,
    ) -> None:
        self.kind = kind
        self.now = 100.0
        self.answers: dict[str, httpx.Response | Exception] = dict.fromkeys(hosts, OK)
        self.asked: list[httpx.Request] = []
        self.waits: list[float] = []
        breaker = Breaker(BreakerSettings(), lambda: 0.5)
        rules = Rules(Timeouts(), RetrySettings(), ConcurrencySettings(), LeastLoad(), breaker)
        replicas = [self.make(host) for host in hosts]
        self.upstream = Upstream("up", self.dialect, replicas, httpx.MockTransport(self._answer), rules)
        self.watch = LoadWatch(
            self.upstream,
            figures(kind),
            LoadSettings(interval=interval, port=port),
            clock=lambda: self.now,
            sleep=self._sleep,
            chance=lambda: chance,
        )

    def make(self, host: str) -> Replica:
        url = f"http://{host}:8000{'/v1' if self.kind == 'vllm' else ''}"
        endpoint = Endpoint(url, self.dialect, [("authorization", "Bearer sk-up")])
        return Replica(endpoint, Breaker(BreakerSettings(), lambda: 0.5), lambda: 0.0, 30.0)

    @property
    def dialect(self) -> Dialect:
        return DIALECTS[self.kind](**({"mint": lambda: ("", 0)} if self.kind == "triton" else {}))

    async def round(self, after: float = 1.5) -> None:
        self.now += after
        await self.watch.round()

    @property
    def loads(self) -> list[tuple[float | None, float, float | None] | None]:
        found = [replica.load for replica in self.upstream.replicas]
        return [None if one is None else (one.running, one.waiting, one.kv) for one in found]

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self.answers[request.url.host]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, content=answer.content)

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        if len(self.waits) == 3:
            raise asyncio.CancelledError


OK = httpx.Response(200, content=VLLM.encode())
SAID = (7.0, 1.0, 0.75)


async def test_an_engine_is_asked_at_the_root_of_its_host_with_the_upstreams_key() -> None:
    scene = Scene("a")
    await scene.round()
    (request,) = scene.asked
    assert (request.method, str(request.url)) == ("GET", "http://a:8000/metrics")
    assert request.headers["authorization"] == "Bearer sk-up"
    assert scene.loads == [SAID]


async def test_metrics_at_a_port_of_their_own_are_asked_for_there_without_the_upstreams_key() -> None:
    scene = Scene("a", kind="triton")
    await scene.round()
    (request,) = scene.asked
    assert str(request.url) == "http://a:8002/metrics"
    assert "authorization" not in request.headers
    elsewhere = Scene("a", port=9400)
    await elsewhere.round()
    assert [str(one.url) for one in elsewhere.asked] == ["http://a:9400/metrics"]


def triton(done: int, batches: int, pending: int = 0) -> httpx.Response:
    figures = {"nv_inference_count": done, "nv_inference_exec_count": batches}
    figures["nv_inference_pending_request_count"] = pending
    return httpx.Response(200, text="".join(f'{name}{{model="m"}} {value}\n' for name, value in figures.items()))


async def test_the_batch_is_that_of_the_executions_since_the_last_look() -> None:
    scene = Scene("a", kind="triton")
    (replica,) = scene.upstream.replicas
    told: list[float | None] = []
    for page in (triton(0, 0), triton(40, 10), triton(100, 15), triton(100, 15), triton(6, 3), triton(30, 4)):
        scene.answers["a"] = page
        await scene.round()
        assert replica.load is not None
        told.append(replica.load.batch)
    # nothing yet; the first; more at once; none since, so the last that was; started anew; and on from there
    assert told == [None, 4.0, 12.0, 12.0, None, 24.0]


async def test_what_an_engine_does_not_say_is_taken_to_be_ours() -> None:
    scene = Scene("a", kind="triton")
    (replica,) = scene.upstream.replicas
    replica.inflight = 5
    scene.answers["a"] = triton(1, 1, pending=7)
    await scene.round()
    assert replica.load is not None
    assert (replica.load.running, replica.load.waiting, replica.load.beside) == (None, 7.0, 2.0)


async def test_what_an_engine_had_beside_our_calls_is_kept_with_the_moment_of_asking() -> None:
    scene = Scene("a")
    (replica,) = scene.upstream.replicas
    replica.inflight = 5
    await scene.round()
    assert replica.load is not None
    assert replica.load.at == 101.5
    assert replica.load.beside == pytest.approx(7 + 1 - 5 + 0.45)


@pytest.mark.parametrize("failure", [httpx.ConnectError(""), httpx.PoolTimeout(""), ZeroDivisionError()])
async def test_an_engine_that_does_not_answer_keeps_what_it_said_until_that_is_too_old(failure: Exception) -> None:
    scene = Scene("a", "b")
    await scene.round()
    scene.answers["a"] = failure
    for _ in range(3):
        await scene.round()
        assert scene.loads == [SAID, SAID]
    await scene.round()
    assert scene.loads == [None, SAID]
    scene.answers["a"] = OK
    await scene.round()
    assert scene.loads == [SAID, SAID]


@pytest.mark.parametrize(
    "answer",
    [httpx.Response(404), httpx.Response(501), httpx.Response(200), httpx.Response(200, content=b"x" * (LARGEST + 1))],
    ids=["404", "501", "empty", "too large"],
)
async def test_an_engine_that_answers_without_figures_is_left_in_peace_for_a_time(answer: httpx.Response) -> None:
    scene = Scene("a", "b")
    scene.answers["a"] = answer
    for _ in range(REST + 1):
        await scene.round()
    assert [request.url.host for request in scene.asked].count("a") == 1
    assert [request.url.host for request in scene.asked].count("b") == REST + 1
    scene.answers["a"] = OK
    await scene.round()
    assert scene.loads == [SAID, SAID]
    await scene.round()
    assert [request.url.host for request in scene.asked].count("a") == 3


async def test_an_engine_that_is_silent_holds_up_nobody_for_longer_than_an_interval() -> None:
    scene = Scene("a", interval=0.01)

    async def silent(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    scene.upstream.transport = httpx.MockTransport(silent)
    await scene.round()
    assert scene.loads == [None]


@pytest.mark.parametrize(("chance", "wait"), [(0.0, 1.35), (0.5, 1.5), (0.999, 1.65)])
async def test_looks_are_an_interval_apart_give_or_take_a_tenth(chance: float, wait: float) -> None:
    scene = Scene("a", chance=chance)
    with pytest.raises(asyncio.CancelledError):
        await scene.watch.run()
    assert scene.waits == pytest.approx([wait] * 3, abs=0.001)
    assert len(scene.asked) == 3


async def test_replicas_that_come_are_asked_and_those_that_go_are_forgotten() -> None:
    scene = Scene("a", "b")
    scene.answers["a"] = httpx.Response(404)
    await scene.round()
    scene.answers["c"] = OK
    scene.upstream.replace([scene.make("c")])
    await scene.round()
    assert scene.loads == [SAID]
    assert scene.watch._resting == {}


# --- what is made of it -------------------------------------------------------------------------------------------


def built(members: dict[str, Any], answer: httpx.Response = OK) -> tuple[list[LoadWatch], Any]:
    made = Settings.model_validate(
        {
            "auth": {"required": False},
            "upstreams": {"up": {"kind": "vllm", "urls": ["http://a/v1", "http://b/v1"], **members}},
            "models": {"*": {"targets": [{"upstream": "up"}]}},
        }
    )

    def answering(_: httpx.Request) -> httpx.Response:
        return httpx.Response(answer.status_code, content=answer.content)

    fleet, watchers = build_fleet(made, httpx.MockTransport(answering), Chance(0.5), lambda: 1.0)
    return [watcher for watcher in watchers if isinstance(watcher, LoadWatch)], fleet


@pytest.mark.parametrize(
    ("members", "watches"),
    [
        ({}, 1),
        ({"load": {"enabled": True}}, 1),
        ({"load": {"enabled": False}}, 0),
        ({"kind": "llamacpp"}, 1),
        ({"kind": "openai"}, 0),
        ({"kind": "openai", "load": {"enabled": False}}, 0),
        ({"kind": "ollama"}, 0),
    ],
)
def test_engines_are_watched_whose_kind_can_tell_unless_the_config_says_no(
    members: dict[str, Any], watches: int
) -> None:
    assert len(built(members)[0]) == watches


async def test_what_engines_say_is_told_in_our_own_metrics_while_it_is_fresh() -> None:
    (watch,), fleet = built({})
    fleet.upstreams["up"].replicas[1].load = None

    def told() -> dict[str, float]:
        found = families(readings(fleet, 1.0))
        return {
            f"{sample.name.removeprefix('gateway_upstream_')} {sample.labels['replica']}": sample.value
            for family in found
            for sample in family.samples
            if "engine" in sample.name
        }

    assert told() == {}
    await watch.round()
    fleet.upstreams["up"].replicas[1].load = None
    assert told() == {"engine_running a": 7.0, "engine_waiting a": 1.0, "engine_kv_usage a": 0.75}


async def test_a_kind_that_tells_of_no_cache_has_no_series_of_one() -> None:
    (watch,), fleet = built({"kind": "tgi"}, httpx.Response(200, content=PAGES["tgi"][0].encode()))
    await watch.round()
    names = {sample.name for family in families(readings(fleet, 1.0)) for sample in family.samples}
    assert "gateway_upstream_engine_waiting" in names
    assert "gateway_upstream_engine_kv_usage" not in names


def test_defaults_are_those_of_the_config() -> None:
    assert LoadConfig().values() == {"enabled": None} | msgspec.structs.asdict(LoadSettings())
    assert load.STALE * LoadSettings().interval == 4.5
