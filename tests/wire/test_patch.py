"""Members are changed, added and taken out of an object, and every other byte stays as it was."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire.chat import read_call
from gateway.wire.patch import GONE, changed, find, patched
from tests.wire.test_members import INDENTS, JSON


@pytest.mark.parametrize(
    ("text", "changes", "left"),
    [
        (b'{"a":1,"b":2,"c":3}', {"b": b"9"}, b'{"a":1,"b":9,"c":3}'),
        (b'{"a":1,"b":2,"c":3}', {"a": GONE}, b'{"b":2,"c":3}'),
        (b'{"a":1,"b":2,"c":3}', {"b": GONE}, b'{"a":1,"c":3}'),
        (b'{"a":1,"b":2,"c":3}', {"c": GONE}, b'{"a":1,"b":2}'),
        (b'{"a":1,"b":2,"c":3}', {"b": GONE, "c": GONE}, b'{"a":1}'),
        (b'{"a":1,"b":2,"c":3}', {"a": GONE, "c": GONE}, b'{"b":2}'),
        (b'{"a":1,"b":2}', {"a": GONE, "b": GONE}, b"{}"),
        (b'{"a":1,"b":2}', {"a": GONE, "b": GONE, "c": b"3"}, b'{"c":3}'),
        (b'{"a":1}', {"x": GONE}, b'{"a":1}'),
        (b'{"a":1}', {"x": b"true", "y": b"[]"}, b'{"x":true,"y":[],"a":1}'),
        (b"{}", {"x": b"true"}, b'{"x":true}'),
        (b" { } ", {"x": b"true"}, b' {"x":true } '),
        (b'\n{ "a" : 1.10 ,\r\n"b":\t2 }\n', {"b": b"3"}, b'\n{ "a" : 1.10 ,\r\n"b":\t3 }\n'),
        (b'\n{ "a" : 1.10 ,\r\n"b":\t2 }\n', {"b": GONE}, b'\n{ "a" : 1.10 }\n'),
        (b'\n{ "a" : 1.10 ,\r\n"b":\t2 }\n', {"a": GONE}, b'\n{ "b":\t2 }\n'),
        # of equal names the last is the one that is read, and the one that stays
        (b'{"a":1,"b":2,"a":3}', {"a": b"9"}, b'{"b":2,"a":9}'),
        (b'{"a":1,"b":2,"a":3}', {"a": GONE}, b'{"b":2}'),
        (b'{"a":1,"a":1,"a":1}', {"a": b"2"}, b'{"a":2}'),
        (b'{"a":1,"b":2,"b":3}', {"b": GONE}, b'{"a":1}'),
        # a name is what it means
        (b'{"\\u0061":1,"b":2}', {"a": b"9"}, b'{"\\u0061":9,"b":2}'),
        (b'{"\\u0061":1,"b":2,"a":3}', {"a": GONE}, b'{"b":2}'),
        # and stands at the top
        (b'{"x":{"a":1},"y":"\\"a\\":1"}', {"a": GONE}, b'{"x":{"a":1},"y":"\\"a\\":1"}'),
        (b'{"x":{"a":1}}', {"a": b"2"}, b'{"a":2,"x":{"a":1}}'),
    ],
)
def test_an_object_is_changed_in_place(text: bytes, changes: dict[str, bytes], left: bytes) -> None:
    assert changed(text, changes) == left


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b'{"on":true}', {"on": b"true"}),
        (b'{ "o\\u006e" : { "a" : 1 } }', {"on": b'{ "a" : 1 }'}),
        (b'{"\\u006F\\u006E":1,"off":null}', {"on": b"1", "off": b"null"}),
        (b'{"on":1,"on":[2]}', {"on": b"[2]"}),
        (b'{"o\\u006e":1,"on":2}', {"on": b"2"}),
        (b'{"on":1,"o\\u006e":2}', {"on": b"2"}),
        (b'{"x":{"on":true},"y":"\\"on\\":true"}', {}),
        (b'{"x":"on"}', {}),
        (b'{"x":"\\u0061"}', {}),
        (b"{}", {}),
    ],
)
def test_members_are_found_by_what_their_names_mean(text: bytes, found: dict[str, bytes]) -> None:
    assert find(text, "on", "off") == found


NAMES = st.sampled_from(["a", "b", "on", "stream", 'q"', "\u00e9"])
PAIRS = st.lists(st.tuples(NAMES, JSON, st.booleans()), max_size=6)
CHANGES = st.dictionaries(st.sampled_from(["a", "b", "on", "stream"]), st.none() | JSON, max_size=4)


def written(pairs: list[tuple[str, Any, bool]], indent: int | str | None) -> bytes:
    def name(name: str, disguised: bool) -> str:
        return '"' + "".join(f"\\u{ord(letter):04x}" for letter in name) + '"' if disguised else json.dumps(name)

    members = (f"{name(key, disguised)} : {json.dumps(value, indent=indent)}" for key, value, disguised in pairs)
    return ("{" + " ,".join(members) + "}").encode()


@settings(max_examples=300, deadline=None)
@given(PAIRS, CHANGES, INDENTS)
def test_a_changed_object_means_the_same_but_for_the_changes(
    pairs: list[tuple[str, Any, bool]], changes: dict[str, Any], indent: int | str | None
) -> None:
    text = written(pairs, indent)
    texts = {name: GONE if value is None else json.dumps(value).encode() for name, value in changes.items()}
    done = changed(text, texts)
    wanted = json.loads(text) | {name: value for name, value in changes.items() if value is not None}
    assert json.loads(done) == {
        name: value for name, value in wanted.items() if name not in changes or changes[name] is not None
    }
    twice = [name for name, _ in json.loads(done, object_pairs_hook=list)]
    assert all(twice.count(name) <= 1 for name in changes)
    untouched = [pair for pair in pairs if pair[0] not in changes]
    assert all(written([pair], indent)[1:-1] in done for pair in untouched)


@settings(max_examples=300, deadline=None)
@given(PAIRS, INDENTS)
def test_what_is_found_is_what_a_parser_reads(pairs: list[tuple[str, Any, bool]], indent: int | str | None) -> None:
    text = written(pairs, indent)
    read = json.loads(text)
    assert {name: json.loads(value) for name, value in find(text, "a", "on").items()} == {
        name: read[name] for name in ("a", "on") if name in read
    }


def test_a_call_is_patched_alike_whether_its_places_are_known_or_looked_for() -> None:
    call = read_call("chat", b'{"model":"m" ,"a":1.10,"stream_options" : {"x":1}, "stream":false}')
    known = {"model": b'"n"', "stream_options": b"{}"}
    assert patched(call, known) == changed(call.body, known)
    assert (
        patched(call, {**known, "stream": b"true"}) == b'{"model":"n" ,"a":1.10,"stream_options" : {}, "stream":true}'
    )
    assert patched(call, {"stream_options": GONE}) == b'{"model":"m" ,"a":1.10,"stream":false}'
