"""Where members stand: against a parser that keeps what they mean."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire.members import elements, members

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=15,
)
INDENTS = st.sampled_from([None, 0, 1, 3, "\t", "\r\n"])


def read(text: bytes) -> list[tuple[str, object]]:
    for member in members(text):
        assert text[member.at : member.start].rstrip(b" \t\r\n:").endswith(b'"')
    return [(member.name.decode(), json.loads(text[member.start : member.end])) for member in members(text)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(max_size=5), JSON), max_size=6), st.booleans(), INDENTS)
def test_members_are_those_that_a_parser_finds_equal_names_too(
    pairs: list[tuple[str, object]], escaped: bool, indent: int | str | None
) -> None:
    def written(value: object) -> str:
        return json.dumps(value, ensure_ascii=escaped, indent=indent)

    text = "{" + ", ".join(f"{written(name)} : {written(value)}\n" for name, value in pairs) + " } "
    assert read(text.encode("utf-8", "surrogatepass")) == pairs


@settings(deadline=None)
@given(st.lists(JSON, max_size=6), INDENTS)
def test_elements_are_those_that_a_parser_finds(values: list[object], indent: int | str | None) -> None:
    text = json.dumps(values, indent=indent).encode()
    assert [json.loads(element) for element in elements(text)] == values


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"{}", []),
        (b' {\n"a" :1 }', [("a", 1)]),
        (b'{"a":1,"a":12,"a":1}', [("a", 1), ("a", 12), ("a", 1)]),
        (b'{"a":[1],"a":[1,2],"b":0}', [("a", [1]), ("a", [1, 2]), ("b", 0)]),
        (b'{"mod\\u0065l":"x","\\"":"}"}', [("model", "x"), ('"', "}")]),
        (b'{"a":"\\\\","b":{"c":"]}\\""},"d":-1.5e+3}', [("a", "\\"), ("b", {"c": ']}"'}), ("d", -1500.0)]),
    ],
)
def test_members_in_odd_writings(text: bytes, found: list[tuple[str, object]]) -> None:
    assert read(text) == found


def test_a_name_need_not_be_utf_8() -> None:
    text = b'{"\xff":{"a":"\xfe"},"\xff\\u0061":1,"b":[2]}'
    found = [(member.name, text[member.start : member.end]) for member in members(text)]
    assert found == [(b"\xff", b'{"a":"\xfe"}'), ("\ufffda".encode(), b"1"), (b"b", b"[2]")]
