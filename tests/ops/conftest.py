"""What the tests here share: the play, which is acted once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ops.play import Run, acted


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with acted(tmp_path_factory.mktemp("ops")) as run:
        yield run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pictures", metavar="FOLDER", help="keep pictures of the dashboards there")


@pytest.fixture(scope="session")
def pictures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures go."""
    kept = request.config.getoption("pictures")
    return Path(kept) if kept else tmp_path_factory.mktemp("pictures")
