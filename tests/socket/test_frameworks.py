"""FastAPI on our protocol: its streaming relies on ASGI 2.4's promise that send() raises when nobody is there."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from tests.socket.conftest import Start


async def test_fastapi_serves_json_and_streams_and_ends_a_stream_nobody_reads(serve: Start) -> None:
    app = FastAPI()
    ended = asyncio.Event()

    @app.post("/sum")
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            try:
                while True:
                    yield "data: x\n\n"
                    await asyncio.sleep(0)
            finally:
                ended.set()

        return StreamingResponse(events(), media_type="text/event-stream")

    site = await serve(app)
    async with await site.caller() as caller:
        await caller.send(
            b"POST /sum HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n[1,2,3]"
        )
        assert (await caller.response()).body == b"6"
        await caller.send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
        await caller.read_until(b"data: x\n\n")
    await asyncio.wait_for(ended.wait(), 10)
    await site.quiet()
