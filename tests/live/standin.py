"""Says what OpenAI or DashScope is documented to say, so that the suite itself is known to work: `python -m tests.live.standin`.

One server is both, at `/openai` and at `/qwen`. FAULTS names things that it does wrong, which the suite must find.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

KEY = "sk-standin-5Fb1"
EMBEDDINGS = {"openai": "text-embedding-3-small", "qwen": "text-embedding-v4"}
MODELS = {"openai": ["gpt-4o-mini", EMBEDDINGS["openai"]], "qwen": ["qwen-flash", "qwen3-8b", EMBEDDINGS["qwen"]]}
USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
FAULTS = os.environ.get("FAULTS", "")


def refused(kind: str, status: int, message: str, code: str | None, type_: str = "invalid_request_error") -> Response:
    """An error as that API has it."""
    error: dict[str, Any] = {"error": {"message": message, "type": type_, "param": None, "code": code}}
    return JSONResponse(error | ({"request_id": "r-1"} if kind == "qwen" else {}), status)


def mistake(kind: str, request: Request, body: dict[str, Any] | None = None) -> Response | None:
    """What is wrong with a request."""
    if request.headers.get("authorization") != f"Bearer {KEY}":
        return refused(kind, 401, "Incorrect API key provided.", "invalid_api_key")
    if body is None:
        return None
    if body["model"] not in MODELS[kind]:
        return refused(kind, 404, f"The model `{body['model']}` does not exist.", "model_not_found")
    if not 0 <= body.get("temperature", 1) <= 2:
        return refused(kind, 400, "Invalid 'temperature': it must be at most 2.", "invalid_value")
    thinks = body.get("enable_thinking", body["model"] == "qwen3-8b")
    if kind == "qwen" and thinks and not body.get("stream"):
        words = "parameter.enable_thinking must be set to false for non-streaming calls"
        return refused(kind, 400, words, "invalid_parameter_error")
    return None


async def models(request: Request) -> Response:
    """The list of them."""
    kind = request.path_params["kind"]
    return mistake(kind, request) or JSONResponse(
        {"object": "list", "data": [{"id": name, "object": "model"} for name in MODELS[kind]]}
    )


async def embeddings(request: Request) -> Response:
    """As many numbers as are wanted."""
    kind, body = request.path_params["kind"], orjson.loads(await request.body())
    numbers: Any = "AAAAAA==" if body.get("encoding_format") == "base64" else [0.5] * body["dimensions"]
    data = [{"object": "embedding", "index": index, "embedding": numbers} for index in range(len(body["input"]))]
    usage = {"prompt_tokens": 5, "total_tokens": 5}
    reply = {"object": "list", "data": data, "model": body["model"], "usage": usage}
    return mistake(kind, request, body) or JSONResponse(reply)


def message(body: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """What is answered, and why it ends."""
    if "tools" in body:
        function = {"name": body["tools"][0]["function"]["name"], "arguments": '{"city": "Paris"}'}
        call = {"index": 0, "id": "call_1", "type": "function", "function": function}
        return {"content": None, "tool_calls": [call]}, "tool_calls"
    if "response_format" in body:
        return {"content": '{"colour": "white"}'}, "stop"
    thoughts = {"reasoning_content": "Hm."} if body.get("enable_thinking") and "thoughtless" not in FAULTS else {}
    return {"content": "Hello.", **thoughts}, "stop"


async def chunks(body: dict[str, Any]) -> AsyncIterator[bytes]:
    """The same as a stream; one that may be long takes its time."""
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": body["model"]}
    said, finish = message(body)
    wants = (body.get("stream_options") or {}).get("include_usage") and "uncounted" not in FAULTS
    deltas = [{"role": "assistant", "content": ""}, *([{"content": "One. "}] * (body["max_tokens"] // 4)), said]

    def event(choices: list[Any], **more: Any) -> bytes:
        return (
            b"data: "
            + orjson.dumps({**base, "choices": choices, **({"usage": None} if wants else {}), **more})
            + b"\n\n"
        )

    for delta in deltas:
        yield event([{"index": 0, "delta": delta, "finish_reason": None}])
        await asyncio.sleep(0.02 if body["max_tokens"] > 100 else 0)
    if "cut" in FAULTS:
        return
    yield event([{"index": 0, "delta": {}, "finish_reason": finish}])
    if wants:
        yield event([], usage=USAGE)
    yield b"data: [DONE]\n\n"


async def chat(request: Request) -> Response:
    """A reply, whole or in pieces."""
    kind, body = request.path_params["kind"], orjson.loads(await request.body())
    if (wrong := mistake(kind, request, body)) is not None:
        return wrong
    if body.get("stream"):
        return StreamingResponse(chunks(body), media_type="text/event-stream")
    said, finish = message(body)
    choice = {"index": 0, "message": {"role": "assistant", **said}, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": body["model"]}
    return JSONResponse({**head, "choices": [choice], "usage": USAGE})


def main() -> None:
    """Serve on a port that the kernel chooses, and print where."""
    routes = [
        Route("/{kind}/models", models),
        Route("/{kind}/embeddings", embeddings, methods=["POST"]),
        Route("/{kind}/chat/completions", chat, methods=["POST"]),
    ]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="warning", lifespan="off"))
        server.run(sockets=[listener])


if __name__ == "__main__":
    main()
