"""What is read of a request, what is refused of it, and that nothing but the patched member changes."""

import contextlib
import json
import re
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.call import Call, Kind
from gateway.errors import CallerError
from gateway.wire.chat import MAX_DEPTH, READ_KEYS, read_call
from gateway.wire.patch import patched, usage_wish
from tests.wire.test_members import INDENTS, JSON

CANARY = "canary-7c1d"
PADDING = '"pad":"' + "x" * 5000 + '",'  # a body that is not small is read in another way


def refused(body: bytes | str, kind: Kind = "chat") -> CallerError:
    data = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
    with pytest.raises(CallerError) as caught:
        read_call(kind, data)
    assert caught.value.status == 400
    assert CANARY not in caught.value.body().decode()
    assert CANARY not in repr(caught.value)
    return caught.value


def both(members: str) -> list[bytes]:
    """The object with these members, small and large."""
    return [b"{" + members.encode() + b"}", b"{" + PADDING.encode() + members.encode() + b"}"]


def nested(depth: int, brackets: str = "[]") -> str:
    opening = "[" if brackets == "[]" else '{"a":'
    return opening * depth + "1" + brackets[1] * depth


# What is refused.


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"", "line 1, column 1"),
        (b"   ", "line 1"),
        (f'{{"model": "{CANARY}",}}', "line 1, column "),
        (f'{{\n "model": "{CANARY}"\n "n": 1}}', "line 3, column 2"),
        (f'{{"model":"{CANARY}"', "line 1"),
        (f'{{"model":"{CANARY}"}} x', "line 1"),
        (f"{{'model':'{CANARY}'}}", "line 1, column 2"),
        (f'{{"model":"{CANARY}","top_p":NaN}}', "column 32"),
        (f'{{"model":"{CANARY}","top_p":Infinity}}', "column 32"),
        (f'{{"model":"{CANARY}","top_p":-Infinity}}', "column "),
        (f'{{"model":"{CANARY}","top_p":1e999}}', "column 32"),
        (f'{{"model":"{CANARY}","n":{"1" * 5000}}}', "column 28"),
        (f'{{"model":"{CANARY}","n":01}}', "column "),
        (f'{{"model":"{CANARY}\x01"}}', "column "),
        (f'{{"model":"{CANARY}\\ud800"}}', "column "),
        (f'{{"model":\n"{CANARY}\udc80"}}', "line 2, column 13"),
        (f'{{"\u00e9":"{CANARY}'.encode() + b'\xff"}', "line 1, column 18"),
        (b"\xef\xbb\xbf" + f'{{"model":"{CANARY}"}}'.encode(), "line 1, column 1"),
        (f'{{"model":"{CANARY}"}}'.encode("utf-16"), "line 1, column 1"),
        (f'{{"model":"{CANARY}"}}'.encode("utf-16-le"), "line 1, column "),
        (f'{{"model":"{CANARY}"}}'.encode("utf-32"), "line 1, column 1"),
        (b"--boundary\r\n" + CANARY.encode(), "line 1, column "),
    ],
)
def test_what_is_no_json_is_refused_with_where_and_without_the_input(body: bytes | str, where: str) -> None:
    error = refused(body)
    assert error.code == "invalid_json"
    assert where in error.message
    assert re.search(r"\(line \d+, column \d+\)", error.message)


@pytest.mark.parametrize("body", [f'["{CANARY}"]', f'"{CANARY}"', "1", "null", "true", "[]"])
def test_what_is_no_object_is_refused(body: str) -> None:
    assert refused(body).code == "invalid_json"


@pytest.mark.parametrize("brackets", ["[]", "{}"])
@pytest.mark.parametrize("padding", ["", PADDING])
def test_more_than_64_levels_are_refused_and_64_are_not(brackets: str, padding: str) -> None:
    def body(depth: int) -> str:
        return f'{{{padding}"model":"m","x":{nested(depth - 1, brackets)}}}'

    assert read_call("chat", body(MAX_DEPTH).encode()).model == "m"
    assert refused(body(MAX_DEPTH + 1)).code == "json_too_deep"
    assert refused(body(900)).code == "json_too_deep"
    assert refused(body(100_000)).code == "json_too_deep"


def test_depth_is_found_among_many_values_and_brackets_in_strings_are_none() -> None:
    wide = json.dumps([*range(50), *[[]] * 50])
    assert read_call("embeddings", f'{{"model":"m","input":{wide}}}'.encode()).model == "m"
    deep = f"[{','.join('1' * 50)},{nested(MAX_DEPTH)}]"
    assert refused(f'{{"model":"m","input":{deep}}}').code == "json_too_deep"
    assert read_call("chat", f'{{"model":"m","user":"{"[" * 100}"}}'.encode()).model == "m"


@pytest.mark.parametrize("key", READ_KEYS)
@pytest.mark.parametrize("disguise", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_a_read_key_given_twice_is_refused_however_it_is_written(key: str, disguise: bool, large: bool) -> None:
    value = {"model": f'"{CANARY}"', "stream": "true", "stream_options": "{}"}.get(key, "1")
    again = f"{key[:-1]}\\u{ord(key[-1]):04x}" if disguise else key
    for first, second in ((key, again), (again, key)):
        members = f'"{first}":{value}, "a":[{{"b":"}}"}}], "{second}" :{value}'
        members += "" if key == "model" else ',"model":"m"'
        error = refused(both(members)[large])
        assert (error.code, error.param) == ("duplicate_key", key)


@pytest.mark.parametrize(
    "members",
    [
        '"tools":[{"model":"a","n":1},{"model":"b","n":2}],"model":"m"',
        '"model":"m","metadata":{"model":"x","user":"y"}',
        '"messages":[{"role":"user","content":"\\"model\\":\\"x\\", model"},{"role":"model"}],"model":"m"',
        '"model":"m","stop":["model","stream"],"stream":false',
        '"a":1,"a":2,"model":"m"',
        '"a":[1],"a":[1,2],"model":"m","messages":[],"messages":[1]',
        '"a":"\\\\","model":"m","b":"\\\\\\"model"',
    ],
)
def test_equal_names_elsewhere_are_nobodys_business(members: str) -> None:
    for body in both(members):
        call = read_call("chat", body)
        assert body[slice(*call.model_at)] == b'"m"'


@pytest.mark.parametrize(
    "members", ['"mod\\u0065l":"m"', '"\\u006d\\u006F\\u0064\\u0065\\u006C" : "m"', '"model"\t:\r\n"m" ']
)
def test_a_model_in_odd_writing_is_found(members: str) -> None:
    for body in both(members):
        assert json.loads(renamed(read_call("chat", body), "other"))["model"] == "other"


@pytest.mark.parametrize("model", ["", "null", '""', "1", "[]", "{}", "true"])
def test_a_model_that_is_no_name_is_missing(model: str) -> None:
    error = refused(f'{{"model":{model},"user":"{CANARY}"}}' if model else f'{{"user":"{CANARY}"}}')
    assert (error.code, error.param) == ("missing_model", "model")


@pytest.mark.parametrize(
    ("members", "param"),
    [('"stream":1', "stream"), ('"stream":"true"', "stream"), ('"stream_options":[]', "stream_options")],
)
def test_a_read_member_of_the_wrong_type_is_refused_where_it_means_something(members: str, param: str) -> None:
    body = f'{{"model":"{CANARY}",{members}}}'
    error = refused(body)
    assert (error.code, error.param) == ("invalid_type", param)
    assert refused(body, "completions").param == param
    assert read_call("embeddings", body.encode()).stream is False


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([*READ_KEYS, "a", "b", "messages"]), st.booleans(), JSON), max_size=6),
    st.booleans(),
)
def test_what_is_refused_as_given_twice_is_what_a_parser_that_keeps_all_finds_twice(
    drawn: list[tuple[str, bool, Any]], large: bool
) -> None:
    pairs = [
        (f"\\u{ord(key[0]):04X}{key[1:]}" if disguised else key, {"model": "m", "stream": True}.get(key, {"n": value}))
        for key, disguised, value in drawn
    ]
    body = both(",".join(f'"{key}" : {json.dumps(value)}' for key, value in [*pairs, ("zz", "model")]))[large]
    keys = [key for key, _ in json.loads(body, object_pairs_hook=lambda found: found)]
    twice = any(keys.count(key) > 1 for key in READ_KEYS)
    code: str | None = None
    try:
        call = read_call("chat", body)
    except CallerError as error:
        code = error.code
    else:
        assert body[slice(*call.model_at)] == b'"m"'
    assert (code == "duplicate_key") is twice
    assert code in {None, "duplicate_key"} or "model" not in keys


# What is read.


def test_what_a_call_says_is_read() -> None:
    body = b'{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[]}'
    call = read_call("chat", body)
    assert (call.kind, call.model, call.stream, call.wants_usage, call.body) == ("chat", "m", True, True, body)
    assert body[slice(*call.model_at)] == b'"m"'
    assert call.options_at is not None
    assert body[slice(*call.options_at)] == b'{"include_usage":true}'


def test_null_is_as_good_as_absent() -> None:
    call = read_call("chat", b'{"model":"m","stream":null,"stream_options":null}')
    assert (call.stream, call.wants_usage) == (False, False)
    assert json.loads(asked(call))["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("kind", "members", "characters"),
    [
        ("chat", '"messages":[{"role":"user","content":"four"},{"role":"user","content":null}]', 4),
        (
            "chat",
            '"messages":[{"content":[{"type":"text","text":"ab"},{"type":"image_url","image_url":{"url":"x"}}]}]',
            2,
        ),
        ("chat", '"messages":[{"content":"\u4f60\u597d"}]', 2),
        ("chat", '"messages":"text"', 4),
        ("chat", '"messages":{"content":{"content":["a",["b"],1,null,true,1.5]}}', 2),
        ("chat", '"messages":7', 0),
        ("completions", '"prompt":["ab","c"]', 3),
        ("completions", '"prompt":[1,2,3]', 0),
        ("completions", '"prompt":[[1,2],[3]]', 0),
        ("embeddings", '"input":"abc"', 3),
        ("embeddings", '"input":[]', 0),
        ("models", '"input":"abc"', 0),
    ],
)
def test_the_characters_of_a_prompt_are_counted(kind: Kind, members: str, characters: int) -> None:
    for body in both(f'"model":"m",{members}'):
        assert read_call(kind, body).prompt_chars == characters


# What is patched.


def renamed(call: Call, model: str) -> bytes:
    return patched(call, {"model": orjson.dumps(model)})


def asked(call: Call) -> bytes:
    return patched(call, {"stream_options": usage_wish(call)})


ODD = (
    '{ "z" : 123456789012345678901234567890, "model"\t: "m\\u0061\\/x" ,\r\n "a":1.10, "b":"\\u00e9\\n", "c":[ 1 , 2 ],'
    '"messages":[{"content":"h\u00e9 \U0001f600"}], "stream":true}'
)


@pytest.mark.parametrize("padding", ["", PADDING])
def test_all_but_the_model_survives_byte_for_byte(padding: str) -> None:
    body = ODD.replace("{", "{" + padding, 1).encode()
    call = read_call("chat", body)
    assert call.model == "ma/x"
    assert renamed(call, 'new "name" \u00e9') == body.replace(b'"m\\u0061\\/x"', '"new \\"name\\" \u00e9"'.encode())
    assert patched(call, {}) is body


def test_all_but_the_options_survives_byte_for_byte_and_in_them_all_but_the_wish() -> None:
    options = '{ "x" : 123456789012345678901234567890123, "include_usage":false , "y":[1.10,"\\u00e9"],"include_usage" : null}'
    body = ODD.replace('"stream":true', f'"stream":true, "stream_options" : {options}').encode()
    done = asked(read_call("chat", body))
    kept = '{"x" : 123456789012345678901234567890123,"y":[1.10,"\\u00e9"],"include_usage":true}'
    assert done == body.replace(options.encode(), kept.encode())


def test_options_with_a_number_of_any_length_are_patched() -> None:
    long = b"1" * 250
    done = asked(read_call("chat", b'{"model":"m","stream_options":{"x":%s}}' % long))
    assert done == b'{"model":"m","stream_options":{"x":%s,"include_usage":true}}' % long


OBJECTS = st.dictionaries(
    st.text(max_size=8) | st.sampled_from(["messages", "tools", "metadata", "usage"]), JSON, max_size=5
)
OPTIONS = st.none() | st.dictionaries(st.sampled_from(["include_usage", "include_obfuscation", "x"]), JSON, max_size=3)


@settings(max_examples=300, deadline=None)
@given(OBJECTS, st.text(min_size=1), OPTIONS, st.booleans(), INDENTS, st.data())
def test_a_patched_body_means_the_same_but_for_what_was_patched(
    members: dict[str, Any], model: str, options: Any, escaped: bool, indent: int | str | None, data: st.DataObject
) -> None:
    members = {key: value for key, value in members.items() if key not in READ_KEYS} | {"model": model}
    if data.draw(st.booleans()):
        members["stream_options"] = options
    keys = data.draw(st.permutations(list(members)))
    body = json.dumps({key: members[key] for key in keys}, ensure_ascii=escaped, indent=indent).encode()
    call = read_call("chat", body)
    assert call.model == model

    done = renamed(call, "other")
    assert json.loads(done) == json.loads(body) | {"model": "other"}
    outside_is_kept(body, done, call.model_at)

    both_done = patched(call, {"model": b'"other"', "stream_options": usage_wish(call)})
    wished = (members.get("stream_options") or {}) | {"include_usage": True}
    assert json.loads(both_done) == json.loads(body) | {"model": "other", "stream_options": wished}
    if call.options_at is not None:
        outside_is_kept(body, asked(call), call.options_at)
    else:
        assert asked(call) == body.replace(b"{", b'{"stream_options":{"include_usage":true},', 1)


def outside_is_kept(body: bytes, done: bytes, at: tuple[int, int]) -> None:
    start, end = at
    assert done[:start] == body[:start]
    assert done.endswith(body[end:])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | JSON.map(json.dumps).map(str.encode) | OBJECTS.map(json.dumps).map(str.encode))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with contextlib.suppress(CallerError):
        assert isinstance(read_call("chat", body), Call)
