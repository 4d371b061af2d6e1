"""What of a caller's trace context is well formed, and how ours is written."""

import pytest

from gateway.wire.tracecontext import Context, Passed, read

TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def context(*values: bytes, state: tuple[bytes, ...] = ()) -> Context | None:
    headers = [(b"traceparent", value) for value in values] + [(b"tracestate", value) for value in state]
    found = read([(b"host", b"g"), *headers])
    return None if found is None else found[1]


@pytest.mark.parametrize(
    ("parent", "flags"),
    [
        (PARENT, 1),
        (b" " + PARENT + b"\t", 1),
        (PARENT[:-2] + b"00", 0),
        (PARENT[:-2] + b"ff", 3),  # what later versions may mean by the others is not known
        (b"01" + PARENT[2:], 1),
        (b"cc" + PARENT[2:] + b"-what-a-later-version-adds", 1),
    ],
)
def test_a_traceparent_that_is_well_formed_is_read(parent: bytes, flags: int) -> None:
    assert context(parent) == Context(TRACE, SPAN, flags)


@pytest.mark.parametrize(
    "parent",
    [
        b"",
        b"00",
        b"ff" + PARENT[2:],
        PARENT.upper(),
        PARENT + b"-more",
        PARENT + b"x",
        b"01" + PARENT[2:] + b"x",
        PARENT[:-1],
        b"00-" + b"0" * 32 + PARENT[35:],
        PARENT[:36] + b"0" * 16 + PARENT[52:],
        PARENT.replace(b"-", b"_"),
        PARENT.replace(b"0a", b"0g"),
        PARENT + b"," + PARENT,
    ],
)
def test_one_that_is_not_is_as_none(parent: bytes) -> None:
    assert context(parent, state=(b"a=1",)) is None


def test_two_are_as_none_and_so_is_a_state_alone() -> None:
    assert context(PARENT, PARENT) is None
    assert context(state=(b"a=1",)) is None


@pytest.mark.parametrize(
    ("states", "kept"),
    [
        ((b"a=1",), b"a=1"),
        ((b"a=1,b=2", b"c=3"), b"a=1,b=2,c=3"),
        ((b" a=1 ,\tb=2, ",), b"a=1 ,\tb=2,"),
        ((b"a=",), b""),
        ((b"a=!#$+-<>~ x",), b"a=!#$+-<>~ x"),
        ((b"tenant@system=1,0a_-*/=2",), b"tenant@system=1,0a_-*/=2"),
        ((b"a=1,a=2",), b""),
        ((b"A=1",), b""),
        ((b"a",), b""),
        ((b"a=b=c",), b""),
        ((b"a=\xff",), b""),
        ((b",",), b""),
        ((b",".join(b"k%d=1" % number for number in range(32)),), b",".join(b"k%d=1" % number for number in range(32))),
        ((b",".join(b"k%d=1" % number for number in range(33)),), b""),
        ((b"a=" + b"x" * 256,), b"a=" + b"x" * 256),
        ((b"a=" + b"x" * 257,), b""),
        ((b",".join(b"k%d=%b" % (number, b"x" * 250) for number in range(20)),), b""),
    ],
)
def test_a_state_goes_on_as_it_came_or_not_at_all(states: tuple[bytes, ...], kept: bytes) -> None:
    assert context(PARENT, state=states) == Context(TRACE, SPAN, 1, kept)


def test_what_is_written_is_what_would_be_read() -> None:
    ours = Context(1, 2, 3, b"a=1")
    assert ours.fields == [
        (b"traceparent", b"00-00000000000000000000000000000001-0000000000000002-03"),
        (b"tracestate", b"a=1"),
    ]
    found = read(ours.fields)
    assert found is not None
    assert found[1] == ours
    assert [name for name, _ in ours._replace(state=b"").fields] == [b"traceparent"]


def test_what_is_passed_is_what_came_even_of_a_later_version() -> None:
    later = b"01" + PARENT[2:-2] + b"ff-more"
    passed = Passed.of([(b"traceparent", later), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")])
    assert passed is not None
    assert passed.fields == [(b"traceparent", later), (b"tracestate", b"a=1,b=2")]
    assert Passed.of([(b"traceparent", b"x")]) is None
