"""What all tests share: the event loop that the product runs on."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from tests.support.secrets import (  # noqa: F401  # what is in this module's names is in force
    no_secret_is_told,
    pytest_runtest_makereport,
    secrets_are_watched,
)

settings.register_profile("suite", max_examples=50)  # a test that needs more says so
settings.load_profile("suite")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """uvloop, as in production; suites that must also hold on asyncio's own loop say so themselves."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session", autouse=True)
def few_objects() -> Iterator[None]:
    """What has been loaded by now stays: to look through thousands of tests at each collection took a sixth of the run."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
