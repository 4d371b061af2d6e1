"""A plain call from socket to socket: what goes out, what comes back, and what is recorded of it."""

import orjson
import pytest

from tests.support.stage import KEY, UPSTREAM_KEY, chat, request, staged
from tests.support.upstream import forever, read, reply, send

ANSWER = (
    b'{"id": "c-1", "object": "chat.completion", "x_unknown": 123456789012345678901234567890, '
    b'"choices": [{"index": 0, "message": {"role": "assistant", "content": "caf\\u00e9"}, "finish_reason": "stop"}], '
    b'"usage": {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}, '
    b'"completion_tokens_details": {"reasoning_tokens": 1}}}'
)
JSON = ["content-type: application/json"]


async def test_the_upstream_gets_the_callers_bytes_with_only_the_model_changed() -> None:
    body = b'{ "x_big": 123456789012345678901234567890, "model" : "m", "messages":[{"content":"\\u00e9\\n"}] }'
    async with staged([read(), reply(ANSWER, headers=JSON)]) as stage:
        await stage.ask(body)

        received = stage.upstream.requests[0]
        assert received.body == body.replace(b'"m"', b'"upstream-m"')
        assert received.path == "/v1/chat/completions"


async def test_a_model_with_the_same_name_upstream_leaves_the_body_as_it_came() -> None:
    body = b'{"messages":[],"model":"same","seed":1}'
    async with staged([read(), reply(ANSWER, headers=JSON)]) as stage:
        await stage.ask(body)

        assert stage.upstream.requests[0].body == body


async def test_the_reply_comes_back_byte_for_byte() -> None:
    async with staged([read(), reply(ANSWER, headers=JSON)]) as stage:
        response = await stage.ask(chat())

        assert (response.status, response.body) == (200, ANSWER)


@pytest.mark.parametrize("prefix", ["/v1", ""])
@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/embeddings"])
async def test_every_endpoint_answers_with_and_without_v1(prefix: str, path: str) -> None:
    async with staged([read(), reply(ANSWER, headers=JSON)]) as stage:
        response = await stage.ask(chat(prompt="a", input="a"), prefix + path)

        assert response.status == 200
        assert stage.upstream.requests[0].path == "/v1" + path


async def test_the_upstream_sees_the_gateways_key_and_never_the_callers() -> None:
    async with staged([read(), reply(ANSWER, headers=JSON)]) as stage:
        await stage.ask(chat(), cookie="a=b", x_forwarded_for="1.2.3.4", openai_organization="theirs")

        received = stage.upstream.requests[0]
        assert received.header("authorization") == f"Bearer {UPSTREAM_KEY}"
        assert KEY.encode() not in received.raw
        assert received.header("accept-encoding") == "identity"
        for name in ("cookie", "x-forwarded-for", "openai-organization"):
            assert received.header(name) is None


async def test_the_caller_sees_of_the_upstreams_headers_only_what_is_on_the_list() -> None:
    theirs = [*JSON, "x-ratelimit-remaining-tokens: 9", "openai-processing-ms: 12", "set-cookie: a=b", "server: x"]
    async with staged([read(), reply(ANSWER, headers=[*theirs, "openai-organization: us"])]) as stage:
        headers = (await stage.ask(chat())).headers

        assert headers["x-ratelimit-remaining-tokens"] == "9"
        assert headers["openai-processing-ms"] == "12"
        assert not {"set-cookie", "server", "openai-organization"} & headers.keys()


async def test_the_answer_says_who_served_it_and_how_long_that_took() -> None:
    async with staged([read(), reply(ANSWER, headers=JSON)]) as stage:
        headers = (await stage.ask(chat(), x_request_id="mine-1")).headers

        assert headers["x-request-id"] == "mine-1"
        assert headers["x-gateway-upstream"] == "up"
        assert headers["x-gateway-attempts"] == "1"
        assert headers["server-timing"].startswith("gateway;dur=")


async def test_the_upstream_is_told_the_request_id() -> None:
    async with staged([read(), reply(ANSWER, headers=JSON)]) as stage:
        response = await stage.ask(chat(), x_request_id="not sane\t!")

        assert stage.upstream.requests[0].header("x-request-id") == response.headers["x-request-id"] != "not sane\t!"


async def test_one_line_and_one_set_of_series_tell_of_the_call() -> None:
    async with staged([read(), reply(ANSWER, headers=JSON)]) as stage:
        await stage.ask(chat())

        line = await stage.records.request()
        assert line["model"], line["upstream_model"] == ("m", "upstream-m")
        assert (line["key"], line["upstream"], line["attempts"], line["status"]) == ("caller", "up", 1, 200)
        assert (line["input_tokens"], line["output_tokens"], line["usage_estimated"]) == (7, 3, False)
        assert (line["outcome"], line["end_reason"], line["stream"]) == ("served", "done", False)
        assert line["prompt_chars"] == len("planted-prompt")
        labels = {"model": "m", "upstream": "up"}
        assert stage.sample("gateway_requests_total", status="200", outcome="served", stream="false", **labels) == 1
        assert stage.sample("gateway_request_duration_seconds_count", stream="false", **labels) == 1
        assert stage.sample("gateway_overhead_seconds_count", stream="false") == 1
        tokens = {kind: stage.sample("gateway_tokens_total", type=kind, **labels) for kind in ("input", "output")}
        assert tokens == {"input": 7, "output": 3}
        assert stage.sample("gateway_tokens_total", type="cached", **labels) == 4
        assert stage.sample("gateway_tokens_total", type="reasoning", **labels) == 1
        assert stage.sample("gateway_upstream_attempts_total", upstream="up", outcome="served") == 1


async def test_calls_on_one_connection_reuse_one_connection_upstream() -> None:
    async with staged([forever(read(), reply(ANSWER, headers=JSON))]) as stage:
        async with await stage.caller() as caller:
            for _ in range(3):
                await caller.send(request(chat()))
                assert (await caller.response()).status == 200

        assert (stage.upstream.accepted, len(stage.upstream.requests)) == (1, 3)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'{"model":"m","model":"n"}', "duplicate_key"),
        (b'{"model":"m","a":NaN}', "invalid_json"),
        (b'{"model":"m","a":"\xff"}', "invalid_json"),
        (b'{"model":"m","a":' + b"[" * 70 + b"]" * 70 + b"}", "json_too_deep"),
        (b"{}", "missing_model"),
        (b'{"model":7}', "missing_model"),
        (b'{"model":"m","stream":"yes"}', "invalid_type"),
    ],
)
async def test_a_bad_body_is_a_400_that_says_what_is_wrong_and_reaches_no_upstream(body: bytes, code: str) -> None:
    async with staged([read()]) as stage:
        response = await stage.ask(body)

        assert (response.status, response.error["code"]) == (400, code)
        assert stage.upstream.accepted == 0
        assert stage.sample("gateway_requests_total", model="unknown", status="400", outcome="rejected") == 1


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"authorization": ""}, 401, "invalid_api_key"),
        ({"authorization": "Bearer wrong"}, 401, "invalid_api_key"),
        ({"authorization": f"Basic {KEY}"}, 401, "invalid_api_key"),
        ({"content_type": "text/plain"}, 415, "unsupported_content_type"),
        ({"content_type": ""}, 415, "unsupported_content_type"),
        ({"content_encoding": "gzip"}, 415, "unsupported_content_encoding"),
    ],
)
async def test_a_bad_head_is_refused_in_openais_shape(headers: dict[str, str], status: int, code: str) -> None:
    async with staged([read()]) as stage:
        response = await stage.ask(chat(), **headers)

        assert (response.status, response.error["code"]) == (status, code)


async def test_the_key_is_taken_from_x_api_key_too() -> None:
    async with staged([read(), reply(ANSWER, headers=JSON)]) as stage:
        assert (await stage.ask(chat(), authorization="", x_api_key=KEY)).status == 200


async def test_a_strangers_body_is_never_read() -> None:
    async with staged([read()]) as stage, await stage.caller() as caller:
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\n"
        await caller.send(f"{head}content-length: 1000000\r\n\r\n".encode())

        assert (await caller.response()).status == 401


async def test_an_unknown_model_and_a_forbidden_one_get_the_same_404() -> None:
    auth = {"keys": [{"name": "caller", "key": KEY, "models": ["same"]}]}
    async with staged([read()], auth=auth) as stage:
        unknown, forbidden = await stage.ask(chat(model="nope")), await stage.ask(chat())

        assert unknown.status == forbidden.status == 404
        assert unknown.body == forbidden.body
        assert unknown.error["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("GET", "/", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
    ],
)
async def test_wrong_paths_and_methods_are_told_in_openais_shape(
    method: str, path: str, status: int, code: str
) -> None:
    async with staged([read()]) as stage:
        response = await stage.get(path, method=method)

        assert response.status == status
        assert orjson.loads(response.body)["error"]["code"] == code
        assert ("allow" in response.headers) == (status == 405)


async def test_a_path_that_does_not_exist_needs_a_key_like_every_other() -> None:
    async with staged([read()]) as stage:
        assert (await stage.get("/v1/nothing", key=None)).status == 401


async def test_health_needs_no_key_and_ready_ends_with_the_drain() -> None:
    async with staged([read()]) as stage:
        assert (await stage.get("/healthz", key=None)).status == 200
        assert (await stage.get("/readyz", key=None)).status == 200
        stage.gateway.health.ready = False
        assert (await stage.get("/readyz", key=None)).status == 503
        assert (await stage.get("/healthz", key=None)).status == 200
        assert stage.records.lines == []


async def test_models_are_the_configured_names() -> None:
    async with staged([read()]) as stage:
        listed = orjson.loads((await stage.get("/v1/models")).body)

        assert [model["id"] for model in listed["data"]] == ["m", "same"]
        assert orjson.loads((await stage.get("/models/m")).body)["id"] == "m"
        assert (await stage.get("/v1/models/nope")).status == 404


async def test_behind_a_pattern_the_upstreams_own_models_are_listed_too() -> None:
    theirs = b'{"object":"list","data":[{"id":"org/big"},{"id":"m"},{"id":7},{}]}'
    models = {"m": {"targets": [{"upstream": "up"}]}, "*": {"targets": [{"upstream": "up"}]}}
    ours = b'{"object":"list","data":[{"id":"org/big"},{"id":"m"}]}'
    async with staged([forever(read(), reply(ours, headers=JSON))], models=models) as stage:
        listed = orjson.loads((await stage.get("/v1/models")).body)

        assert [model["id"] for model in listed["data"]] == ["m", "org/big"]
        assert orjson.loads((await stage.get("/v1/models/org/big")).body)["owned_by"] == "up"
    async with staged([forever(read(), reply(theirs, headers=JSON))], models=models) as stage:
        assert len(orjson.loads((await stage.get("/v1/models")).body)["data"]) == 1


async def test_adapters_are_models_of_their_own_behind_a_pattern_and_say_of_which() -> None:
    base = {"id": "org/big", "object": "model", "owned_by": "vllm", "root": "/models/big", "parent": None}
    adapter = {"id": "sql", "object": "model", "owned_by": "vllm", "root": "/adapters/sql", "parent": "org/big"}
    theirs = orjson.dumps({"object": "list", "data": [base, adapter, {"id": "odd", "parent": 7}]})
    models = {"chat": {"targets": [{"upstream": "up", "model": "org/big"}]}, "*": {"targets": [{"upstream": "up"}]}}
    asked = [read(), reply(theirs, headers=JSON)] * 2 + [read(), reply(ANSWER, headers=JSON)]
    async with staged(asked, models=models) as stage:
        listed = {model["id"]: model for model in orjson.loads((await stage.get("/v1/models")).body)["data"]}
        assert list(listed) == ["chat", "org/big", "sql", "odd"]
        assert [model.get("parent", "none") for model in listed.values()] == ["none", "none", "org/big", "none"]
        assert "root" not in listed["sql"], "a path of the engine's machine"
        assert orjson.loads((await stage.get("/v1/models/sql")).body)["parent"] == "org/big"
        await stage.ask(chat(model="sql"))
        assert orjson.loads(stage.upstream.requests[-1].body)["model"] == "sql"


async def test_a_failing_list_upstream_leaves_the_configured_names() -> None:
    models = {"m": {"targets": [{"upstream": "up"}]}, "*": {"targets": [{"upstream": "up"}]}}
    async with staged([read(), send(b"nonsense\r\n\r\n")], models=models) as stage:
        assert [model["id"] for model in orjson.loads((await stage.get("/v1/models")).body)["data"]] == ["m"]


async def test_a_wildcard_passes_any_model_through_and_is_its_own_label() -> None:
    models = {"*": {"targets": [{"upstream": "up"}]}}
    async with staged([read(), reply(ANSWER, headers=JSON)], models=models) as stage:
        await stage.ask(chat(model="whatever/else"))

        assert orjson.loads(stage.upstream.requests[0].body)["model"] == "whatever/else"
        assert stage.sample("gateway_requests_total", model="*", upstream="up") == 1
        assert (await stage.records.request())["upstream_model"] == "whatever/else"


async def test_without_required_auth_everybody_is_anonymous() -> None:
    async with staged([read(), reply(ANSWER, headers=JSON)], auth={"required": False}) as stage:
        assert (await stage.ask(chat(), authorization="")).status == 200
        assert (await stage.records.request())["key"] == "anonymous"
