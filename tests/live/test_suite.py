"""The suite for real APIs against a stand-in: it passes where all is as documented, finds what is not, and says why it skips."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live.standin import KEY
from tests.support.processes import Process

pytestmark = pytest.mark.engines

ROOT = Path(__file__).parents[2]


class StandIn(Process):
    """The stand-in while it is entered."""

    def __init__(self, faults: str = "") -> None:
        super().__init__([sys.executable, "-m", "tests.live.standin"], {"FAULTS": faults, "PYTHONPATH": str(ROOT)})
        self.url = ""

    def started(self) -> None:
        self.url = self.out.wait(lambda line: line.startswith("http"))


def suite(*options: str, **environ: str) -> str:
    """What the suite says at its end."""
    command = [sys.executable, "-m", "pytest", "-m", "live", "-p", "no:cacheprovider", "-rfs", *options, "tests/live"]
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "DASHSCOPE_", "LIVE_"))
    }
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, cwd=ROOT, env={**kept, **environ}
    )
    return run.stdout


def at(standin: StandIn) -> dict[str, str]:
    """What tells the suite to ask the stand-in."""
    return {
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": f"{standin.url}/openai",
        "DASHSCOPE_API_KEY": KEY,
        "DASHSCOPE_BASE_URL": f"{standin.url}/qwen",
    }


def test_it_passes_where_all_is_as_documented_and_tells_what_was_spent() -> None:
    with StandIn() as standin:
        said = suite(**at(standin))
    assert re.search(r"^\d+ passed, \d+ skipped", said, re.MULTILINE), said
    assert "failed" not in said
    assert re.search(r"^openai: \d+ calls, [1-9]\d* tokens in, [1-9]\d* tokens out$", said, re.MULTILINE), said
    assert re.search(r"^qwen: \d+ calls, [1-9]\d* tokens in, [1-9]\d* tokens out$", said, re.MULTILINE), said


def test_it_finds_what_is_wrong() -> None:
    with StandIn("cut, thoughtless, uncounted") as standin:
        said = suite("-k", "counted_without or last_event or thoughts", **at(standin))
    failed = re.findall(r"^FAILED tests/live/test_live.py::(\w+)\[(\w+)", said, re.MULTILINE)
    assert set(failed) == {
        ("test_a_stream_comes_in_pieces_and_is_counted_without_being_asked", "openai"),
        ("test_a_stream_comes_in_pieces_and_is_counted_without_being_asked", "qwen"),
        ("test_usage_comes_in_one_last_event_for_whoever_asks", "openai"),
        ("test_usage_comes_in_one_last_event_for_whoever_asks", "qwen"),
        ("test_whoever_wants_it_to_think_gets_its_thoughts", "qwen"),
    }, said


def test_without_a_key_it_says_why_it_asks_nobody() -> None:
    said = suite()
    assert "OPENAI_API_KEY is not set, so the real API is not asked" in said
    assert "DASHSCOPE_API_KEY is not set, so the real API is not asked" in said
    assert " passed" not in said
    assert "failed" not in said
