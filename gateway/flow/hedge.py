"""Two attempts at one call, of which the first to have a reply is served and the other is cancelled at once.

Must not know when a hedge is worth it, where it goes, or who pays.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from gateway import errors
from gateway.flow.attempt import Attempt
from gateway.tasks import spawn

Trying = Callable[[], Coroutine[Any, Any, Attempt]]
Runner = asyncio.Task[Attempt | errors.GatewayError]


async def race(first: Trying, beside: Callable[[], Trying | None], after: float | None) -> Attempt:
    """The attempt that was first to have a reply. `beside` starts the second one, `after` seconds (None: never).

    Raises GatewayError when all have failed. Cancelled, it leaves nothing behind.
    """
    runners: list[Runner] = [spawn(_told(first), name="attempt")]
    winner: Runner | None = None
    try:
        await asyncio.wait(runners, timeout=after)
        if not runners[0].done() and (second := beside()) is not None:
            runners.append(spawn(_told(second), name="hedge"))
        winner = await _winner(runners)
        result = winner.result()
    finally:
        await _dismiss([runner for runner in runners if runner is not winner])
    if isinstance(result, errors.GatewayError):
        raise result
    return result


async def _winner(runners: list[Runner]) -> Runner:
    """The first that has a reply; if none has, the last to fail."""
    while True:
        done, running = await asyncio.wait(
            [runner for runner in runners if not _failed(runner)] or runners, return_when=asyncio.FIRST_COMPLETED
        )
        won = next((runner for runner in done if not _failed(runner)), None)
        if won is not None:
            return won
        if not running:
            return done.pop()


def _failed(runner: Runner) -> bool:
    return runner.done() and isinstance(runner.result(), errors.GatewayError)


async def _dismiss(runners: list[Runner]) -> None:
    for runner in runners:
        runner.cancel()
    running = [runner for runner in runners if not runner.done()]
    if running:
        await asyncio.wait(running)  # a moment: what they hold is given back as they are cancelled
    for runner in runners:
        if not runner.cancelled() and isinstance(attempt := runner.result(), Attempt):
            await attempt.discard()


async def _told(attempt: Trying) -> Attempt | errors.GatewayError:
    try:
        return await attempt()
    except errors.GatewayError as failure:
        return failure
