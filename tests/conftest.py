"""What all tests share: the event loop that the product runs on."""

from typing import Any

import pytest


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """uvloop, as in production; suites that must also hold on asyncio's own loop say so themselves."""
    return "asyncio", {"use_uvloop": True}
