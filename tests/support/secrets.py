"""What must be told to nobody, planted all over the suite, and the watch over everything that the gateway tells.

Keys, prompts, answers and upstreams' own words hold the mark `planted-`, here and wherever else a test makes some up.
The watch sees every line that any gateway logs (in this process and in those that tests start), every page of metrics,
every error that is written for a caller, and whatever a test's run puts on stdout, stderr or the library's log. A test
in whose time the mark is seen there fails, whatever it is about. For more that is told, traces for one, call `watch.see`.
"""

import base64
import re
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from gateway import errors
from gateway.observe.metrics import Metrics
from gateway.observe.writer import LineWriter

_SECRETS = """
    caller_key wrong_key upstream_key organization prompt system part image tool user metadata stop embedding completion
    answer delta arguments upstream_error upstream_header cookie query broken_json model request_id
"""
SECRETS = {name: f"planted-{name.replace('_', '-')}-{number:02}q7" for number, name in enumerate(_SECRETS.split())}
_BASE64 = {base64.b64encode(b"x" * shift + b"planted-")[3:-4].decode() for shift in range(3)}
_MARK = re.compile("|".join(["planted-", *map(re.escape, sorted(_BASE64))]).encode())


class Watch:
    """`leaks`: where the mark was seen, with some of what was around it."""

    def __init__(self) -> None:
        self.leaks: list[str] = []

    def see(self, where: str, told: bytes | str | object) -> None:
        """Look at what was told there."""
        data = told if isinstance(told, bytes) else str(told).encode("utf-8", "backslashreplace")
        if (found := _MARK.search(data)) is not None:
            around = data[max(0, found.start() - 60) : found.end() + 60]
            self.leaks.append(f"{where}: {around.decode('utf-8', 'backslashreplace')}")

    def take(self) -> list[str]:
        """The leaks so far, which are forgotten."""
        leaks, self.leaks = self.leaks, []
        return leaks


watch = Watch()


def _watching(where: str, told: Callable[..., Any]) -> Callable[..., Any]:
    """`told`, whose result is looked at."""

    def seen(self: Any, *args: Any) -> Any:
        result = told(self, *args)
        # A caller's own request that the upstream refused is explained in the upstream's words: that is what they are for.
        if not isinstance(self, errors.UpstreamRejected):
            watch.see(where, result)
        return result

    return seen


def _watching_lines(msg: Callable[[LineWriter, bytes], None]) -> Callable[[LineWriter, bytes], None]:
    def seen(self: LineWriter, line: bytes) -> None:
        watch.see("log", line)
        msg(self, line)

    return seen


def _watching_pages(page: Callable[[Metrics], Any]) -> Callable[[Metrics], Any]:
    async def seen(self: Metrics) -> bytes:
        made: bytes = await page(self)
        watch.see("metrics", made)
        return made

    return seen


@pytest.fixture(scope="session", autouse=True)
def secrets_are_watched() -> Iterator[None]:
    """Look at everything, for as long as there are tests."""
    with pytest.MonkeyPatch.context() as patch:
        msg = LineWriter.msg
        for name in [name for name, method in vars(LineWriter).items() if method is msg]:
            patch.setattr(LineWriter, name, _watching_lines(msg))
        patch.setattr(Metrics, "page", _watching_pages(Metrics.page))
        for name in ("body", "event"):
            patch.setattr(errors.GatewayError, name, _watching("error", getattr(errors.GatewayError, name)))
        yield
    assert watch.take() == []


@pytest.fixture(autouse=True)
def no_secret_is_told(secrets_are_watched: None) -> Iterator[None]:
    """Fail the test in whose time one was."""
    yield
    assert watch.take() == [], "a secret was told"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test in whose captured output there is one."""
    report = yield
    if report.when == "teardown" and report.passed:
        seen = Watch()
        for name, text in report.sections:
            seen.see(name, text)
        if seen.leaks:
            report.outcome = "failed"
            report.longrepr = f"a secret was told: {seen.leaks}"
    return report
