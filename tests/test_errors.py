"""Every error as callers see it, and that its documentation knows it."""

import ast
import json
import re
from pathlib import Path

import pytest

from gateway import errors

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
CLASSES = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.GatewayError)
]

# What the SDKs see: they class by status, and read type and code.
SEEN: dict[type[errors.GatewayError], tuple[int, str, str | None]] = {
    errors.CallerError: (400, "invalid_request_error", "invalid_request"),
    errors.Unauthorized: (401, "invalid_request_error", "invalid_api_key"),
    errors.NotFound: (404, "invalid_request_error", "unknown_url"),
    errors.ModelNotFound: (404, "invalid_request_error", "model_not_found"),
    errors.MethodNotAllowed: (405, "invalid_request_error", "method_not_allowed"),
    errors.CallerTimeout: (408, "invalid_request_error", "request_timeout"),
    errors.BodyTooLarge: (413, "invalid_request_error", "request_too_large"),
    errors.UrlTooLong: (414, "invalid_request_error", "url_too_long"),
    errors.Unsupported: (400, "invalid_request_error", "unsupported_parameter"),
    errors.UnsupportedMedia: (415, "invalid_request_error", "unsupported_content_type"),
    errors.HeadTooLarge: (431, "invalid_request_error", "headers_too_large"),
    errors.Internal: (500, "server_error", "internal_error"),
    errors.Unavailable: (503, "server_error", "unavailable"),
    errors.ShuttingDown: (503, "server_error", "server_shutting_down"),
    errors.Overloaded: (503, "server_error", "overloaded"),
    errors.PoolExhausted: (503, "server_error", "pool_exhausted"),
    errors.CallerLeft: (499, "server_error", "caller_left"),
    errors.UpstreamError: (502, "server_error", "upstream_error"),
    errors.UpstreamUnreachable: (502, "server_error", "upstream_unreachable"),
    errors.UpstreamTimeout: (504, "server_error", "upstream_timeout"),
    errors.DeadlinePassed: (504, "server_error", "deadline_exceeded"),
    errors.UpstreamBroken: (502, "server_error", "upstream_invalid_response"),
    errors.UpstreamThrottled: (429, "rate_limit_error", "rate_limit_exceeded"),
    errors.UpstreamOverloaded: (503, "server_error", "upstream_overloaded"),
    errors.UpstreamUnavailable: (503, "server_error", "upstream_unavailable"),
    errors.UpstreamQuota: (503, "server_error", "upstream_quota"),
    errors.UpstreamUnauthorized: (502, "server_error", "upstream_auth"),
    errors.UpstreamRejected: (422, "invalid_request_error", "as_the_upstream_said"),
}


def made(class_: type[errors.GatewayError]) -> errors.GatewayError:
    if issubclass(class_, errors.ModelNotFound | errors.Unauthorized):
        return class_()
    if issubclass(class_, errors.UpstreamRejected):
        return class_("No.", status=422, code="as_the_upstream_said", param="n")
    return class_("No.")


@pytest.mark.parametrize("class_", CLASSES)
def test_an_error_is_what_the_sdks_expect(class_: type[errors.GatewayError]) -> None:
    error = made(class_)
    told = json.loads(error.body())["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert told["message"]
    if class_ is not errors.GatewayError:
        assert (error.status, told["type"], told["code"]) == SEEN[class_]
    assert error.event() == b"data: " + error.body() + b"\n\n"


def test_an_event_stays_one_event_whatever_its_message() -> None:
    error = errors.CallerError("two\nlines\r\n\r\nand \u2028 more", param="a\n\nb")
    assert error.event().count(b"\n") == 2
    assert json.loads(error.event()[6:])["error"]["message"] == error.message


@pytest.mark.parametrize("class_", CLASSES)
def test_who_is_told_to_come_back_is_told_when_and_who_may_have_reached_an_upstream_is_told_not_to(
    class_: type[errors.GatewayError],
) -> None:
    headers = made(class_).headers
    if issubclass(class_, errors.Unavailable):
        assert set(headers) == {"retry-after", "retry-after-ms"}
    if issubclass(class_, errors.UpstreamThrottled | errors.UpstreamUnavailable):
        assert set(headers) == {"x-should-retry", "retry-after", "retry-after-ms"}
    tried = issubclass(class_, errors.UpstreamError | errors.Internal)
    assert headers.get("x-should-retry") == ("false" if tried else None)
    assert ("www-authenticate" in headers) is issubclass(class_, errors.Unauthorized)


@pytest.mark.parametrize("class_", [errors.UpstreamThrottled, errors.UpstreamOverloaded])
def test_a_throttle_keeps_what_the_upstream_asked_for_apart_from_what_the_caller_is_told(
    class_: type[errors.UpstreamThrottled],
) -> None:
    unsaid, said = class_("No."), class_("No.", retry_after=7.5)
    assert (unsaid.retry_after, unsaid.headers["retry-after-ms"]) == (None, "1000")
    assert (said.retry_after, said.headers["retry-after-ms"]) == (7.5, "7500")


@pytest.mark.parametrize(
    ("seconds", "whole", "milliseconds"),
    [(0, "0", "0"), (0.25, "1", "250"), (1, "1", "1000"), (1.001, "2", "1001"), (-3, "0", "0"), (120, "120", "120000")],
)
def test_when_to_come_back_is_said_in_whole_seconds_and_in_milliseconds(
    seconds: float, whole: str, milliseconds: str
) -> None:
    assert errors.retry_after_headers(seconds) == {"retry-after": whole, "retry-after-ms": milliseconds}


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    assert errors.__doc__ is not None
    lines = [line for line in errors.__doc__.splitlines() if "──" in line]
    drawn = [re.match(r"    ([│ ]*)[├└]── (\w+) +(4xx|\d+)", line) for line in lines]
    path = ["GatewayError"]
    tree: dict[str, tuple[str, str]] = {}
    for match in drawn:
        assert match is not None
        depth = len(match[1]) // 4 + 1
        path[depth:] = [match[2]]
        tree[match[2]] = (path[depth - 1], match[3])
    assert tree == {
        class_.__name__: (str(class_.__base__ and class_.__base__.__name__), status(class_))
        for class_ in CLASSES
        if class_ is not errors.GatewayError
    }


def status(class_: type[errors.GatewayError]) -> str:
    return "4xx" if class_ is errors.UpstreamRejected else str(class_.status)


def codes() -> dict[str, set[str]]:
    """Every code that the source gives to an error, with the statuses that it comes with."""
    found = {str(class_.code): {status(class_)} for class_ in CLASSES if class_ is not errors.UpstreamRejected}
    del found["invalid_request"], found["unavailable"]  # bases, of which every error says more
    for path in (ROOT / "gateway").rglob("*.py"):
        if path.name == "errors.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for code, raised in _given(node):
                found.setdefault(code, set()).add(status(vars(errors).get(raised, errors.CallerError)))
    return found


def _given(node: ast.AST) -> list[tuple[str, str]]:
    """Codes in `Error(code=...)`, in `code = ...` and in `def error(code=...)`, and what is made with them."""
    if isinstance(node, ast.Call):
        values = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return [(code, name) for value in values for code in _texts(value)]
    if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["code"]:
        return [(code, "") for code in _texts(node.value)]
    if isinstance(node, ast.arguments):
        named = zip(node.kwonlyargs, node.kw_defaults, strict=True)
        return [(code, "") for argument, value in named if argument.arg == "code" and value for code in _texts(value)]
    return []


def _texts(value: ast.expr) -> list[str]:
    if isinstance(value, ast.IfExp):
        return _texts(value.body) + _texts(value.orelse)
    return [value.value] if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value else []


def test_every_code_is_documented_with_its_status_and_no_other_is() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d, ]+) \|", DOCS, re.MULTILINE)
    assert {code: set(statuses.split(", ")) for code, statuses in rows} == codes()
    assert len(rows) == len(codes())
