"""An upstream that serves well until it is told to be ill, each in the way that its name says."""

import asyncio

import orjson

from tests.support.stage import DONE, END, ROLE, STREAM_HEAD, delta, event, frame
from tests.support.upstream import Peer, ScriptedUpstream, close, forever, read, reply, send

FIRST, BETWEEN, WORDS = 0.02, 0.005, 5  # seconds until there is something to say, and from word to word; words
LONG = 10.5  # seconds; longer than anybody is to wait for a first token
HELD = 0.5  # seconds that an answer takes where there is little room
_JSON = "content-type: application/json"
_USAGE = {
    "prompt_tokens": 120,
    "completion_tokens": WORDS,
    "total_tokens": 120 + WORDS,
    "prompt_tokens_details": {"cached_tokens": 80},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
_REFUSALS = {
    "failing": ("500 Internal Server Error", "server_error"),
    "keyless": ("401 Unauthorized", "invalid_api_key"),
    "dry": ("429 Too Many Requests", "insufficient_quota"),
}
_DELAYS = {"narrow": HELD, "uneven": HELD, "slow": LONG}


class Engine(ScriptedUpstream):
    """Listens on one port. `name` says in which way it is ill while `ill` is set."""

    def __init__(self, name: str) -> None:
        super().__init__([forever(self._answer)])
        self.name = name
        self.ill = False
        self._looks = 0

    async def _answer(self, peer: Peer) -> None:
        await read()(peer)
        request = self.requests.pop()
        if request.method == "GET":
            await self._tell(peer, request.path)
        elif self.ill and self.name in _REFUSALS:
            status, code = _REFUSALS[self.name]
            error = {"message": "no", "type": code, "param": None, "code": code}
            await reply(orjson.dumps({"error": error}), status=status, headers=[_JSON])(peer)
        else:
            await asyncio.sleep(_DELAYS.get(self.name, FIRST) if self.ill else FIRST)
            await (self._stream if b'"stream":true' in request.body else self._whole)(peer)

    async def _tell(self, peer: Peer, path: str) -> None:
        """What an engine says of itself, or that it is well."""
        if path == "/metrics":
            self._looks += 1
            await reply(_METRICS.format(done=8 * self._looks, batches=2 * self._looks).encode())(peer)
        else:
            if self.ill and self.name == "pooled":
                await asyncio.sleep(HELD)  # and meanwhile it has the only connection
            await reply()(peer)

    async def _stream(self, peer: Peer) -> None:
        await send(STREAM_HEAD + frame(ROLE))(peer)
        for _ in range(WORDS):
            await send(frame(delta("word ")))(peer)
            await asyncio.sleep(BETWEEN)
            if self.ill and self.name == "cutting":
                await close()(peer)
                return
        usage = event({"id": "c-1", "choices": [], "usage": _USAGE})
        await send(frame(delta(finish="stop") + usage + DONE) + END)(peer)

    async def _whole(self, peer: Peer) -> None:
        choices = [{"index": 0, "message": {"role": "assistant", "content": "word"}, "finish_reason": "stop"}]
        await reply(orjson.dumps({"id": "c-1", "choices": choices, "usage": _USAGE}), headers=[_JSON])(peer)


_METRICS = """\
vllm:num_requests_running{{model_name="m"}} 3
vllm:num_requests_waiting{{model_name="m"}} 2
vllm:kv_cache_usage_perc{{model_name="m"}} 0.5
nv_inference_pending_request_count{{model="m"}} 2
nv_inference_count{{model="m"}} {done}
nv_inference_exec_count{{model="m"}} {batches}
"""
