"""Who may pass, by the head alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.call import Principal
from gateway.errors import CallerError, GatewayError, Unauthorized
from gateway.flow.gate import ANONYMOUS, Gate, may_use

SEARCH = Principal("search", ("gpt-4o-mini", "qwen*"))
OTHER = Principal("other")
KEYS = {"sk-search": SEARCH, "sk-other": OTHER, "sk-\u00e9": Principal("accent")}
Headers = list[tuple[bytes, bytes]]


def admitted(*headers: tuple[str, bytes], required: bool = True) -> Principal:
    return Gate(KEYS, required=required).admit([(name.encode(), value) for name, value in headers])


def refused(*headers: tuple[str, bytes], required: bool = True) -> GatewayError:
    with pytest.raises(CallerError) as caught:
        admitted(*headers, required=required)
    return caught.value


@pytest.mark.parametrize(
    "value",
    [b"Bearer sk-search", b"bearer sk-search", b"BEARER sk-search", b"Bearer  sk-search", b"Bearer sk-search "],
)
def test_a_bearer_is_known_by_its_key(value: bytes) -> None:
    assert admitted(("content-type", b"x"), ("authorization", value)) is SEARCH


def test_a_key_may_come_as_x_api_key_too() -> None:
    assert admitted(("x-api-key", b" sk-other ")) is OTHER
    assert admitted(("x-api-key", b"sk-other"), ("authorization", b"Bearer sk-other")) is OTHER


def test_a_key_is_compared_as_the_bytes_that_it_is_sent_as() -> None:
    assert admitted(("authorization", "Bearer sk-\u00e9".encode())).name == "accent"
    assert isinstance(refused(("authorization", "Bearer sk-\u00e9".encode("latin-1"))), Unauthorized)


WRONG: list[list[tuple[str, bytes]]] = [
    [],
    [("authorization", b"")],
    [("authorization", b"Bearer")],
    [("authorization", b"Bearer ")],
    [("authorization", b"Bearer wrong")],
    [("authorization", b"Bearer SK-SEARCH")],
    [("authorization", b"Bearer sk-searc")],
    [("authorization", b"Bearer sk-search x")],
    [("authorization", b"Bearer Bearer sk-search")],
    [("authorization", b"Basic sk-search")],
    [("authorization", b"sk-search")],
    [("authorization", b"Bearersk-search")],
    [("authorization", b"\xff\xfe\x00")],
    [("x-api-key", b"")],
    [("x-api-key", b"Bearer sk-search")],
    [("cookie", b"sk-search")],
]


@pytest.mark.parametrize("headers", WRONG)
def test_a_missing_key_and_a_wrong_one_are_refused_in_the_same_words(headers: list[tuple[str, bytes]]) -> None:
    error = refused(*headers)
    assert (error.status, error.code) == (401, "invalid_api_key")
    assert (error.body(), error.headers) == (refused().body(), refused().headers)


@pytest.mark.parametrize("headers", WRONG)
def test_where_no_key_is_required_everybody_passes(headers: list[tuple[str, bytes]]) -> None:
    assert admitted(*headers, required=False) is ANONYMOUS
    assert admitted(("authorization", b"Bearer sk-search"), required=False) is SEARCH


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", b"Bearer sk-search"), ("authorization", b"Bearer sk-search")],
        [("authorization", b"Bearer sk-search"), ("authorization", b"Bearer wrong")],
        [("x-api-key", b"sk-search"), ("x-api-key", b"sk-search")],
        [("authorization", b"Bearer sk-search"), ("x-api-key", b"sk-other")],
        [("authorization", b"Basic x"), ("x-api-key", b"sk-other")],
    ],
)
def test_two_keys_are_refused_as_a_mistake(headers: list[tuple[str, bytes]], required: bool) -> None:
    error = refused(*headers, required=required)
    assert (error.status, error.code) == (400, "ambiguous_credentials")
    assert b"sk-" not in error.body()


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["authorization", "x-api-key", "x"]), st.binary(max_size=20)), max_size=3))
def test_no_head_makes_the_gate_fall_over(headers: list[tuple[str, bytes]]) -> None:
    with pytest.raises(CallerError):
        admitted(*headers)


@pytest.mark.parametrize(
    ("model", "may"),
    [
        ("gpt-4o-mini", True),
        ("gpt-4o", False),
        ("gpt-4o-mini-x", False),
        ("qwen-max", True),
        ("qwen", True),
        ("", False),
    ],
)
def test_a_principal_may_use_the_names_that_it_has_and_what_its_patterns_begin(model: str, may: bool) -> None:
    assert may_use(SEARCH, model) is may
    assert may_use(OTHER, model)
    assert not may_use(Principal("none", ()), model)
