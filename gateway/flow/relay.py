"""Passes a reply on: every event when its last byte is here, as it came, and an honest end.

What is taken out is only what the gateway itself asked for (the usage event, `"usage":null`). What is added is only an
end that the upstream forgot, or the error that says that there is none. Must not know transports or routes.
"""

import re

import msgspec

from gateway import errors
from gateway.call import Call, Clock, Exchange
from gateway.flow.answer import Answer, Silence
from gateway.flow.attempt import Stream
from gateway.flow.reply import Plain
from gateway.wire import chat
from gateway.wire.sse import Event

_DONE = b"[DONE]"
_DONE_EVENT = b"data: [DONE]\n\n"
_FINISH = re.compile(rb'"finish_reason"[ \t\r\n]*+:[ \t\r\n]*+"')
_MOST_ENDINGS = 1024
_LAST_SECONDS = 1.0  # for the end of the body after [DONE], so that the connection can be used again


class Meter:
    """Reads of each event what must be counted, and decides what of it goes on. No I/O."""

    __slots__ = ("_choices", "_endings", "_strips", "done", "exchange", "failure", "invalid")

    def __init__(self, exchange: Exchange, call: Call) -> None:
        self.exchange = exchange
        self._strips = not call.wants_usage
        self._choices = call.choices
        self._endings: list[bytes] = []  # the events that say why a choice ended
        self.done = False
        self.failure: bytes | None = None  # the event that tells of an error
        self.invalid = False

    def take(self, events: list[Event], now: float) -> bytes:
        """What of `events` goes to the caller. Stops at the end of the stream, and at an error."""
        passed: list[bytes] = []
        for raw, data in events:
            if not data:  # a comment, or what the standard calls no event
                passed.append(raw)
            elif data[:1] != b"{" and data.strip() == _DONE:
                passed.append(raw)
                self.done = True
                break
            elif (kept := self._event(raw, data, now)) is not None:
                passed.append(kept)
            elif self.ended:
                break
        return passed[0] if len(passed) == 1 else b"".join(passed)

    def _event(self, raw: bytes, data: bytes, now: float) -> bytes | None:
        try:
            chunk = chat.read_chunk(data)
        except msgspec.DecodeError:
            self.invalid = True
            return None
        if chunk.failed:
            self.failure = data
            return None
        if _FINISH.search(data) is not None and len(self._endings) < _MOST_ENDINGS:
            self._endings.append(data)
        exchange = self.exchange
        if (last := exchange.last_event_at) is not None and now - last > exchange.longest_gap:
            exchange.longest_gap = now - last
        exchange.last_event_at = now
        exchange.events += 1
        if exchange.content_at is None and chat.has_content(chunk.choices):
            exchange.content_at = now
        if not chunk.usage:
            return raw
        return self._usage(raw, chunk)

    def _usage(self, raw: bytes, chunk: chat.Chunk) -> bytes | None:
        if not chunk.has_usage:
            return chat.without_null_usage(raw) if self._strips else raw
        self.exchange.usage = chat.read_usage(chunk.usage)
        return None if self._strips and chunk.empty else raw

    @property
    def ended(self) -> bool:
        """Nothing more of this stream goes on."""
        return self.done or self.invalid or self.failure is not None

    @property
    def finished(self) -> bool:
        """Whether the upstream said of every choice why it ended, which one that forgets `[DONE]` may have."""
        finished: set[int] = set()
        for data in self._endings:
            finished |= chat.finished(data)
        return len(finished) >= self._choices


async def relay_plain(reply: Plain, answer: Answer, call: Call, exchange: Exchange) -> None:
    """The whole reply at once; to a caller who asked for a stream, as the events of one."""
    if reply.read.has_usage:
        exchange.usage = chat.read_usage(reply.read.usage)
    if not call.stream:
        await answer.plain(200, reply.body, [(b"content-type", b"application/json"), *reply.headers])
        return
    await answer.start_stream(reply.headers)
    exchange.content_at = exchange.committed_at
    await answer.write(b"".join(chat.as_stream(reply.body, with_usage=call.wants_usage)))
    await answer.end()


async def relay_stream(stream: Stream, answer: Answer, silence: Silence, meter: Meter, clock: Clock) -> None:
    """Event after event until the upstream says that it is done. Raises GatewayError where it ends otherwise."""
    silence.writing = True
    await answer.start_stream(stream.headers)
    events: list[Event] | None = []
    if data := meter.take(stream.first, clock()):
        await answer.write(data)
    meter.exchange.relayed_at = clock()
    silence.heard()
    while not meter.ended and (events := await stream.read()) is not None:
        if data := meter.take(events, clock()):
            silence.writing = True
            await answer.write(data)
            silence.heard()
    silence.writing = True  # for as long as the caller takes for the rest: the upstream has said everything
    if not meter.done:
        _refuse_unfinished(stream, meter)
        await answer.write(_DONE_EVENT)
    await answer.end()
    if events is not None:
        await _read_out(stream)


def _refuse_unfinished(stream: Stream, meter: Meter) -> None:
    if meter.failure is not None:
        raise stream.refusal(meter.failure)
    if meter.invalid:
        raise errors.UpstreamBroken("The upstream sent an invalid event.", code="upstream_invalid_event")
    if not meter.finished:
        raise errors.UpstreamBroken("The upstream ended the stream early.", code="upstream_stream_incomplete")


async def _read_out(stream: Stream) -> None:
    """Read the end of the body that follows `[DONE]`, so that the connection can be used again. Data there is dropped."""
    if not stream.end_within(_LAST_SECONDS):
        return
    try:
        while await stream.read() == []:
            pass
    except errors.GatewayError:
        return  # the caller has everything
