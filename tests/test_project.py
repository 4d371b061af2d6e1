"""What holds for the repository as a whole: nothing in it belongs to one machine, and what must be written down is."""

import fnmatch
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import __version__
from gateway.config import Server

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
RUN = ROOT / ".ci" / "run"
IGNORED = [".git", *(ROOT / ".gitignore").read_text(encoding="utf-8").replace("/\n", "\n").split()]

REGISTRY = re.compile(
    r"https?://[^\s\"'<>)]*/simple\b"  # an index, whoever's
    r"|(?:registry|pypi|pythonhosted|npmjs|yarnpkg|artifactory|nexus)[\w-]*\.[\w.-]*/[\w@(-]"
    r"|^\s*(?:--(?:extra-)?index-url|--find-links|-i)\s"
    r"|\"resolved\":",
    re.MULTILINE,
)
MACHINE = re.compile(r"(?<![\w.$~})-])/(?:root|home|Users)/")


def tracked(folder: Path = ROOT) -> Iterator[Path]:
    """All files but those that git is told to ignore. git itself may not be here."""
    for path in sorted(folder.iterdir()):
        if any(fnmatch.fnmatch(path.name, pattern) for pattern in IGNORED):
            continue
        if path.is_dir():
            yield from tracked(path)
        else:
            yield path


def texts() -> Iterator[tuple[str, str]]:
    """Each file's name and text, but for those that are no text."""
    for path in tracked():
        content = path.read_bytes()
        if b"\0" not in content:
            yield str(path.relative_to(ROOT)), content.decode("utf-8", "replace")


def places(pattern: re.Pattern[str]) -> list[str]:
    """Where a pattern is found, as `file:line`."""
    return [
        f"{name}:{text.count(chr(10), 0, found.start()) + 1}"
        for name, text in texts()
        if name != "tests/test_project.py"
        for found in pattern.finditer(text)
    ]


def test_no_file_names_a_registrys_address() -> None:
    assert places(REGISTRY) == []


@pytest.mark.parametrize(
    "text",
    [
        "--index-url https://example.com/x",
        "see https://example.com/any/simple/",
        '  "resolved": "https://example.com/a.tgz"',
        "https://registry.example.com/openai",
    ],
)
def test_an_address_of_a_registry_would_be_found(text: str) -> None:
    assert REGISTRY.search(text)


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    assert places(MACHINE) == []


@pytest.mark.parametrize("text", ["open('/root/.npmrc')", "see /home/me/y", "file:///Users/me"])
def test_a_path_of_somebodys_machine_would_be_found(text: str) -> None:
    assert MACHINE.search(text)


def test_the_licence_is_here() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_version_is_one_and_the_changelog_knows_it() -> None:
    assert PROJECT["version"] == __version__
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert versions[1] == __version__


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_entry_of_a_lock_file_is_pinned_and_has_hashes(lock: Path) -> None:
    entries = [line for line in lock.read_text(encoding="utf-8").replace("\\\n", "").splitlines() if line.strip()]
    assert entries
    assert [
        entry
        for entry in entries
        if not re.fullmatch(r"[\w.\[\],-]+==\S+( ; .+?)?(\s+--hash=sha256:[0-9a-f]{64})+", entry)
    ] == []


def test_every_lock_file_has_a_source_that_make_writes_it_from() -> None:
    sources = {"run", "dev", *(path.stem for path in (ROOT / "requirements").glob("*.in"))}
    assert {lock.stem for lock in LOCKS} == sources
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [lock.name for lock in LOCKS if f"-o requirements/{lock.name}" not in makefile] == []


def test_every_lock_file_is_told_of() -> None:
    told = (ROOT / "requirements" / "README.md").read_text(encoding="utf-8")
    assert [lock.name for lock in LOCKS if f"`{lock.name}`" not in told] == []


def test_what_the_gateway_runs_on_is_the_same_in_every_lock_that_holds_it() -> None:
    held = {
        lock.name: dict(re.findall(r"^(\S+)==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE)) for lock in LOCKS
    }
    run = held["run.txt"]
    for name in ("dev.txt", "clients.txt", "bench.txt"):
        assert {package: held[name].get(package) for package in run} == run


def _targets() -> list[str]:
    head, _, steps = RUN.read_text(encoding="utf-8").partition("set -x\n")
    code = [line for line in head.splitlines() if not line.startswith("#")]
    assert code == ["set -euo pipefail", 'cd "$(dirname "${BASH_SOURCE[0]}")/.."', ""]
    return re.findall(r"^make ([a-z-]+)$", steps, re.MULTILINE) if re.fullmatch(r"(make [a-z-]+\n)+", steps) else []


def test_ci_runs_make_targets_that_exist_and_nothing_else() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert _targets() == ["check", "test", "test-timed", "test-clients", "test-engines", "test-ops"]
    assert [target for target in _targets() if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []
    assert os.access(RUN, os.X_OK)


@pytest.mark.parametrize(
    ("failing", "ran"),
    [
        ("none", 6),
        ("check", 1),
        ("test", 2),
        ("test-timed", 3),
        ("test-clients", 4),
        ("test-engines", 5),
        ("test-ops", 6),
    ],
)
def test_ci_fails_with_the_first_target_that_fails(tmp_path: Path, failing: str, ran: int) -> None:
    make = tmp_path / "make"
    make.write_text(f'#!/bin/sh\necho "made $1 in $PWD"\n[ "$1" != {failing} ]\n', encoding="utf-8")
    make.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [RUN], cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout.splitlines() == [f"made {target} in {ROOT}" for target in _targets()[:ran]]
    assert (done.returncode == 0) == (failing == "none")
    assert done.stderr.splitlines() == [f"+ make {target}" for target in _targets()[:ran]]


def test_every_decision_is_in_the_list_under_its_own_title() -> None:
    folder = ROOT / "docs" / "adr"
    pages = sorted(page for page in folder.glob("*.md") if page.name != "README.md")
    listed = re.findall(
        r"^- \[(\d{4})\]\((.+?)\): (.+)$", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    for page, (number, link, title) in zip(pages, listed, strict=True):
        assert link == page.name
        assert page.read_text(encoding="utf-8").splitlines()[0] == f"# {number}: {title}"


def test_every_decision_has_its_three_parts() -> None:
    for page in (ROOT / "docs" / "adr").glob("0*.md"):
        heads = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert heads == ["Context", "Decision", "Consequences"], page.name


def test_every_event_of_the_log_is_in_the_operators_table() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "gateway").rglob("*.py"))
    call = r"(?:log(?:ger)?(?:\(\))?\.(?:info|warning|error)|_report)\(\s*\"(\w+)\""
    written = set(re.findall(call, code)) - {"request"}  # which has a page of its own
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?) \| (?:info|warning|error) \|", page, re.MULTILINE)
    assert {event for row in rows for event in re.findall(r"`(\w+)`", row)} == written


def test_who_stops_the_process_is_told_to_wait_for_as_long_as_the_drain_can_take() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    drain = int(Server().drain_seconds)
    assert f"terminationGracePeriodSeconds: {10 + drain + 10}" in page
    for wait in ("--time", "--stop-timeout", "TimeoutStopSec="):
        assert re.search(rf"{wait}[ =]?{drain + 10}\b", page)
