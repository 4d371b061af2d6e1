"""The number of series follows from the config: callers can't make more of them, and a pod's are not too many."""

import random
from collections.abc import Iterator
from typing import Any

import httpx
import structlog

from gateway.app import Gateway, create_gateway
from gateway.config import Settings
from tests.observe.large import large

KEY = "sk-caller-of-the-cardinality-test"
REQUESTS = 100_000
MOST = 10_000


class Silent:
    """A log that nobody reads."""

    def info(self, *_: Any, **__: Any) -> None:
        return

    warning = error = debug = info


def answer(request: httpx.Request) -> httpx.Response:
    """What an upstream says may be different each time, too."""
    words = f"{random.random()}"
    headers = {f"x-{words}": words, "content-type": "application/json", "x-request-id": words, "openai-model": words}
    error = {"error": {"message": words, "code": f"code-{words}", "type": words}}
    return httpx.Response(random.choice([400, 404, 418]), json=error, headers=headers)


def made_up(rng: random.Random) -> Iterator[tuple[str, str, list[tuple[bytes, bytes]], bytes]]:
    """Requests for ever, each with something in it that has not been there before: method, path, headers, body."""
    number = 0
    while True:
        number += 1
        word = f"{rng.getrandbits(64):x}"
        headers = [
            (b"content-type", b"application/json"),
            (b"authorization", f"Bearer {KEY}".encode()),
            (b"x-request-id", word.encode()),
            (b"user-agent", word.encode()),
            (f"x-{word}".encode(), word.encode()),
        ]
        body = b'{"model":"%b","stream":%b}' % (word.encode(), rng.choice([b"true", b"false"]))
        method, path = "POST", rng.choice(["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
        match number % 20:
            case 0:  # the only ones that come to an upstream, and that cost time
                body = b'{"model":"gpt-%b","messages":[],"input":"a","prompt":"a"}' % word.encode()
            case 1 | 2 | 3 | 4:
                headers[1] = (b"authorization", f"Bearer {word}".encode())
            case 5 | 6 | 7 | 8:
                path = rng.choice([f"/{word}", f"/{word}/metrics", f"{path}/{word}"])
            case 9:
                method = word.upper()
            case 10:
                headers[0] = (b"content-type", word.encode())
            case 11:
                headers.append((rng.choice([b"x-request-timeout-ms", b"x-stainless-timeout"]), word.encode()))
        yield method, path, headers, body


async def ask(gateway: Gateway, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> int:
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    await gateway.api({"type": "http", "method": method, "path": path, "headers": headers}, receive, send)
    return statuses[0]


def series(gateway: Gateway) -> set[tuple[str, tuple[str, ...]]]:
    found = [sample for family in gateway.metrics.registry.collect() for sample in family.samples]
    return {(sample.name, tuple(sample.labels.values())) for sample in found}


async def test_a_hundred_thousand_made_up_models_keys_paths_and_headers_leave_the_number_of_series_as_it_is() -> None:
    settings = Settings.model_validate(
        {
            "auth": {"keys": [{"name": "caller", "key": KEY}]},
            "upstreams": {"up": {"kind": "openai", "url": "http://up:8000/v1"}},
            "models": {"known": {"targets": [{"upstream": "up"}]}, "gpt-*": {"targets": [{"upstream": "up"}]}},
        }
    )
    logger = structlog.wrap_logger(Silent(), wrapper_class=structlog.make_filtering_bound_logger(50))
    gateway = create_gateway(settings, logger=logger, transport=httpx.MockTransport(answer))
    requests = made_up(random.Random(1))
    statuses = {await ask(gateway, *next(requests)) for _ in range(2000)}
    assert statuses == {400, 401, 404, 405, 415, 418}
    before = series(gateway)
    for _ in range(REQUESTS):
        await ask(gateway, *next(requests))
    assert series(gateway) == before
    models = {
        dict(sample.labels).get("model", "gpt-*")
        for family in gateway.metrics.registry.collect()
        for sample in family.samples
    }
    assert models == {"gpt-*", "unknown"}
    await gateway.fleet.aclose()


async def test_a_pod_with_a_large_config_stays_under_ten_thousand_series() -> None:
    made = large()
    page = (await made.page()).decode()
    lines = [line for line in page.splitlines() if not line.startswith("#")]
    assert len(set(lines)) == len(lines)
    assert MOST * 0.5 < len(lines) < MOST  # or it would be no large one
