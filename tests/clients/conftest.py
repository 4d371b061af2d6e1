"""What the tests of other clients share: the stage of the SDK's tests, and the environment that holds those clients.

The clients are not among the dependencies of `make test`: where they are missing nothing in this folder is collected.
"""

import importlib.util

from tests.sdk.conftest import anyio_backend, stage, standing

__all__ = ["anyio_backend", "stage", "standing"]

collect_ignore_glob = [] if importlib.util.find_spec("langchain_tests") else ["test_*.py"]
