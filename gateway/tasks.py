"""The only way to start a background task: it is held on to, and its failure is reported instead of lost."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

_running: set[asyncio.Task[Any]] = set()


def spawn(coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
    """Run `coroutine` beside the caller; an exception in it is logged by type alone, never with its values."""
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    _running.add(task)
    task.add_done_callback(_settle)
    return task


def _settle(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (failure := task.exception()) is not None:
        structlog.get_logger().error("task_failed", task=task.get_name(), error=type(failure).__name__)
