"""The framer against the standard: whatever the reads look like, the same bytes and the same data."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.wire.sse import Event, EventTooLarge, Framer
from tests.wire.corpus import CAPTURED, STREAMS

TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"token"}}]}\n\n'


def standard(stream: bytes) -> list[bytes]:
    """The data of a stream's events by WHATWG HTML 9.2.6, byte by byte, in the order that the standard says it in."""
    stream = stream.removeprefix(b"\xef\xbb\xbf")
    lines: list[bytes] = []
    line = b""
    at = 0
    while at < len(stream):
        byte = stream[at : at + 1]
        at += 1
        if byte not in b"\r\n":
            line += byte
            continue
        at += byte == b"\r" and stream[at : at + 1] == b"\n"
        lines.append(line)
        line = b""
    events: list[bytes] = []
    data: list[bytes] = []
    for line in lines:
        name, _, value = line.partition(b":")
        if line == b"":
            if data:
                events.append(b"\n".join(data))
            data = []
        elif name == b"data":
            data.append(value.removeprefix(b" "))
    return events


def framed(reads: list[bytes], limit: int = 1 << 20) -> list[Event]:
    framer = Framer(limit)
    return [event for read in reads for event in framer.feed(read)]


def data_of(events: list[Event]) -> list[bytes]:
    return [data for _, data in events if data is not None]


def raw_of(events: list[Event]) -> bytes:
    return b"".join(raw for raw, _ in events)


def check(stream: bytes, reads: list[bytes]) -> None:
    events = framed(reads)
    assert data_of(events) == standard(stream)
    raw = raw_of(events)
    assert stream.startswith(raw)
    assert standard(stream[len(raw) :]) == []


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_split_anywhere_gives_the_same_bytes_and_the_same_data(name: str) -> None:
    stream = STREAMS[name]
    check(stream, [stream])
    for at in range(len(stream) + 1):
        check(stream, [stream[:at], stream[at:]])


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_reads_of_any_size_give_the_same_bytes_and_the_same_data(name: str, size: int) -> None:
    stream = STREAMS[name]
    check(stream, [stream[at : at + size] for at in range(0, len(stream), size)])


@pytest.mark.parametrize("name", CAPTURED)
def test_what_real_engines_sent_is_framed_whole(name: str) -> None:
    stream = CAPTURED[name]
    events = framed([stream])
    assert raw_of(events) == stream
    assert len(events) > 3
    assert all(data is not None for _, data in events)


PIECES = st.sampled_from(
    [
        b"data",
        b"data:",
        b"data: ",
        b":",
        b" ",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"x",
        b"{}",
        b"\xef\xbb\xbf",
        b"id: 1",
        b"\xe4",
    ]
)


@settings(deadline=None)
@given(st.lists(PIECES, max_size=40).map(b"".join), st.lists(st.integers(0, 80), max_size=12))
@example(b"data: a\r\r\ndata: b\n\n", [9])
@example(b"data: a\n\r\n\ndata: b\n\n", [9])
def test_any_stream_in_any_reads_is_framed_by_the_standard(stream: bytes, cuts: list[int]) -> None:
    ends = sorted({min(cut, len(stream)) for cut in cuts} | {len(stream)})
    check(stream, [stream[start:end] for start, end in zip([0, *ends], ends, strict=False)])


def test_an_event_is_there_when_its_last_byte_is() -> None:
    for stream in (b"data: a\n\n", b"data: a\r\n\r", b"data: a\r\r", b"data: a\n\r"):
        framer = Framer()
        assert framer.feed(stream[:-1]) == []
        assert framer.feed(stream[-1:]) == [(stream, b"a")]


def test_an_event_without_data_has_none_and_one_with_an_empty_field_has_an_empty_one() -> None:
    assert framed([b": ping\n\n"]) == [(b": ping\n\n", None)]
    assert framed([b"id: 1\n\n"]) == [(b"id: 1\n\n", None)]
    assert framed([b"data:\n\n"]) == [(b"data:\n\n", b"")]
    assert framed([b"data\n\n"]) == [(b"data\n\n", b"")]


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_an_event_of_just_the_limit_passes_and_a_byte_more_does_not(end: bytes) -> None:
    fits = b"data: " + b"x" * (100 - 6 - len(end)) + end
    assert framed([fits], limit=100) == [(fits, fits[6 : -len(end)])]
    too_large = fits[:6] + b"x" + fits[6:]
    for reads in ([too_large], [too_large[:50], too_large[50:]]):
        with pytest.raises(EventTooLarge):
            framed(reads, limit=100)


def test_an_event_that_never_ends_is_given_up_at_the_limit() -> None:
    framer = Framer(100)
    assert framer.feed(b"x" * 100) == []
    with pytest.raises(EventTooLarge):
        framer.feed(b"x")


@pytest.mark.parametrize(
    "bad", [b"data: " + b"x" * 200, b"data: " + b"x" * 200 + b"\n\n", b"x" * 200 + b"\n\n" + TOKEN]
)
def test_what_came_before_an_event_that_is_too_large_is_delivered(bad: bytes) -> None:
    framer = Framer(100)
    assert data_of(framer.feed(TOKEN + TOKEN + bad)) == [TOKEN[6:-2]] * 2
    for _ in range(2):
        with pytest.raises(EventTooLarge):
            framer.feed(TOKEN)


def test_ten_thousand_events_in_one_read_come_out_in_order() -> None:
    reads = b"".join(b"data: %d\n\n" % number for number in range(10_000))
    assert data_of(framed([reads])) == [b"%d" % number for number in range(10_000)]


def seconds(reads: list[bytes]) -> float:
    """The least of three, because others want the processor too."""
    took: list[float] = []
    for _ in range(3):
        start = time.process_time()
        framed(reads, limit=1 << 30)
        took.append(time.process_time() - start)
    return min(took)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_an_event_in_a_hundred_thousand_reads_costs_in_proportion_to_them(end: bytes) -> None:
    def reads(count: int) -> list[bytes]:
        return [b"data: ", *[b"x"] * count, end, end]

    assert data_of(framed(reads(100_000))) == [b"x" * 100_000]
    assert seconds(reads(100_000)) < 30 * seconds(reads(12_500))  # 8 in proportion, 64 if squared


@pytest.mark.parametrize("event", [TOKEN, TOKEN.replace(b"\n", b"\r\n"), b"\n\n"])
def test_many_events_in_one_read_cost_in_proportion_to_them(event: bytes) -> None:
    assert seconds([event * 20_000]) < 30 * seconds([event * 2_500])
