"""The OpenAI API: the hot path from a body to a relayed reply, and the list of models.

One function for chat, completions and embeddings alike: what differs is data in the Call. Must not know sockets, keys or
metrics.
"""

from functools import partial

import orjson

from gateway import errors
from gateway.api.caller import Caller
from gateway.call import Call, Clock, Kind
from gateway.fleet import Fleet, Route
from gateway.flow.answer import Silence
from gateway.flow.catalogue import Listed, catalogue
from gateway.flow.dispatch import Dispatch
from gateway.flow.gate import may_use
from gateway.flow.relay import Meter, relay_plain, relay_stream
from gateway.flow.reply import Plain
from gateway.wire.chat import read_call

_JSON = [(b"content-type", b"application/json")]


class OpenAI:
    """The endpoints. `started_at`: Unix seconds, shown as the time that the models were made."""

    def __init__(self, fleet: Fleet, dispatch: Dispatch, clock: Clock, started_at: int) -> None:
        self._fleet = fleet
        self._dispatch = dispatch
        self._clock = clock
        self._started_at = started_at
        self.chat = partial(self._complete, "chat")
        self.completions = partial(self._complete, "completions")
        self.embeddings = partial(self._complete, "embeddings")

    async def _complete(self, kind: Kind, caller: Caller) -> None:
        exchange = caller.exchange
        body = await caller.json_body()
        exchange.received_at = self._clock()
        call = read_call(kind, body)
        del body  # 1,000 streams would keep 1,000 prompts
        exchange.stream = call.stream
        exchange.prompt_chars = call.prompt_chars
        route = self._route(caller, call.model)
        exchange.model = route.name
        try:
            if call.stream:
                await self._stream(caller, call, route)
            elif isinstance(reply := await self._dispatch(call, route, exchange), Plain):
                await relay_plain(reply, caller.answer, call, exchange)
        finally:
            call.body = b""  # a failure's traceback holds on to the call for a while

    def _route(self, caller: Caller, model: str) -> Route:
        route = self._fleet.resolve(model)
        if route is None or not may_use(caller.principal, model):
            raise errors.ModelNotFound
        return route

    async def _stream(self, caller: Caller, call: Call, route: Route) -> None:
        answer, exchange = caller.answer, caller.exchange
        silence = Silence(answer, exchange)
        try:
            reply = await self._dispatch(call, route, exchange, watched_by=silence.under)
            call.body = b""  # likewise: from here on nothing is tried again
            if isinstance(reply, Plain):
                await relay_plain(reply, answer, call, exchange)
                return
            async with reply:
                await relay_stream(reply, answer, silence, Meter(exchange, call), self._clock)
        finally:
            silence.close()

    async def models(self, caller: Caller) -> None:
        """`GET /v1/models`: the names that this caller may use."""
        names = await self._names(caller)
        body = orjson.dumps({"object": "list", "data": [self._model(name, listed) for name, listed in names.items()]})
        await caller.answer.plain(200, body, _JSON)

    async def model(self, caller: Caller) -> None:
        """`GET /v1/models/{id}`. Raises ModelNotFound."""
        names = await self._names(caller)
        name = caller.path_rest
        if name not in names:
            raise errors.ModelNotFound
        await caller.answer.plain(200, orjson.dumps(self._model(name, names[name])), _JSON)

    async def _names(self, caller: Caller) -> dict[str, Listed]:
        names = await catalogue(self._fleet)
        return {name: listed for name, listed in names.items() if may_use(caller.principal, name)}

    def _model(self, name: str, listed: Listed) -> dict[str, object]:
        model = {"id": name, "object": "model", "created": self._started_at, "owned_by": listed.owner}
        return model if listed.parent is None else {**model, "parent": listed.parent}
