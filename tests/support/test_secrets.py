"""The watch over secrets can fail: each way in which one could be told is tried in a run of its own, and that run fails."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

LEAKS = """
import logging, sys
import pytest, structlog
from gateway import errors
from gateway.observe.log import configure
from tests.observe.samples import logging_to, metrics, exchange
from tests.support.processes import Process
from tests.support.secrets import SECRETS, watch
from tests.support.stage import Records

KEY = SECRETS["upstream_key"]

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.parametrize("format_", ["json", "console"])
@pytest.mark.parametrize("level", ["info", "warning", "error"])
def test_leaks_in_a_line(tmp_path, format_, level):
    with logging_to(tmp_path / "log", format_) as log:
        getattr(log.logger, level)("request", fields={}, key=KEY) if format_ == "json" else getattr(log.logger, level)(KEY)

def test_leaks_by_a_library(tmp_path):
    with logging_to(tmp_path / "log"):
        logging.getLogger("uvicorn.error").error("could not use %s", KEY)

def test_leaks_in_a_record_of_a_stage():
    Records().logger.info("request", fields={"key": KEY})

async def test_leaks_in_a_label():
    made = metrics()
    made.finish(exchange(model=KEY))
    await made.page()

def test_leaks_in_an_error():
    errors.UpstreamError(f"bad key {KEY}").body()

def test_leaks_in_an_event():
    errors.UpstreamError(f"bad key {KEY}").event()

def test_leaks_on_stdout():
    print(KEY)

def test_leaks_on_stderr():
    sys.stderr.write(KEY)

def test_leaks_in_a_warning_of_a_library_that_nobody_folded_in():
    logging.getLogger("library").warning("%s", KEY)

def test_leaks_in_base64():
    import base64
    for shift in range(3):
        print(base64.b64encode(b"a:b:"[:shift] + KEY.encode()).decode())

def test_leaks_in_a_process():
    with Process([sys.executable, "-c", f"print({KEY!r})"]) as process:
        process.out.wait(lambda line: True)

def test_does_not_leak_what_the_caller_is_to_be_told():
    errors.UpstreamRejected(KEY, status=400, code=None, param=None).body()
"""


def test_whatever_tells_a_secret_fails(tmp_path: Path) -> None:
    made = tmp_path / "test_leaks.py"
    made.write_text(LEAKS, encoding="utf-8")
    plugin = [
        "-p",
        "tests.support.secrets",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-c",
        str(ROOT / "pyproject.toml"),
    ]
    command = [sys.executable, "-m", "pytest", *plugin, "-rA", str(made)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    told = set(re.findall(r"^ERROR .*::test_(\w+(?:\[.+?\])?)", done.stdout, re.MULTILINE))
    ran = set(re.findall(r"^PASSED .*::test_(\w+(?:\[.+?\])?)", done.stdout, re.MULTILINE))
    assert len(ran) == 17, done.stdout + done.stderr
    assert ran - told == {"does_not_leak_what_the_caller_is_to_be_told"}
