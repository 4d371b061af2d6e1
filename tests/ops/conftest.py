"""What the tests here share: the play, which is acted once."""

from collections.abc import Iterator

import pytest

from tests.ops.play import Run, acted


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with acted(tmp_path_factory.mktemp("ops")) as run:
        yield run
