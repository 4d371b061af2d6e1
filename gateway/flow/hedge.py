"""Two attempts at one call, of which the first to have a reply is served and the other is cancelled at once.

Must not know when a hedge is worth it, where it goes, or who pays.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from gateway import errors
from gateway.flow.attempt import Attempt
from gateway.outcome import Outcome, judge
from gateway.tasks import spawn

Trying = Callable[[], Coroutine[Any, Any, Attempt]]
Runner = asyncio.Task[Attempt | errors.GatewayError]


async def race(first: Trying, beside: Callable[[], Trying | None], after: float | None) -> Attempt:
    """The attempt that was first to have a reply. `beside` starts the second one, `after` seconds (None: never).

    Raises GatewayError when all have failed. Cancelled, it leaves nothing behind.
    """
    runners: list[Runner] = [spawn(_told(first), name="attempt")]
    try:
        await asyncio.wait(runners, timeout=after)
        if not runners[0].done() and (second := beside()) is not None:
            runners.append(spawn(_told(second), name="hedge"))
        winner = await _winner(runners)
        result = winner.result()
        await _dismiss([runner for runner in runners if runner is not winner])
    except BaseException:
        await _dismiss(runners)  # the winner too, if the caller left in the same moment
        raise
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
    """It has, and the other might not: what is the caller's fault would be told by both, unless it is so there only."""
    result = runner.result() if runner.done() else None
    if not isinstance(result, errors.GatewayError):
        return False
    return judge(result) is not Outcome.REJECTED or isinstance(result, errors.Unsupported)


async def _dismiss(runners: list[Runner]) -> None:
    """End them and give back what they hold, also where this itself is cancelled."""
    for runner in runners:
        runner.cancel()
        runner.add_done_callback(_give_back)
    if runners:
        await asyncio.wait(runners)  # a moment: then the call's record has them too


def _give_back(runner: Runner) -> None:
    if runner.cancelled() or runner.exception() is not None:
        return
    if isinstance(attempt := runner.result(), Attempt):
        attempt.let_go()
        spawn(attempt.discard(), name="discard")


async def _told(attempt: Trying) -> Attempt | errors.GatewayError:
    try:
        return await attempt()
    except errors.GatewayError as failure:
        return failure
