"""Under load one of three replicas fails, in each of the ways in which they do; then all three.

Each run prints its figures. The machine may be busy with other things, more so at one time than at another: a p99 is that
of the median second, and may move by the tenth that is promised (or MOVES, if that is more), and by HOPS times what the
machine adds to calls that go straight to a replica.
"""

import asyncio
import time
from pathlib import Path

import pytest

from tests.failover.load import TIMEOUT
from tests.failover.replica import FAULTS
from tests.failover.stage import JITTER, LONGEST_EJECTION, staged
from tests.failover.trial import AFTER, BEFORE, FAULT, PATIENCE, Trial

pytestmark = pytest.mark.failover

ATTEMPTS, FAILURES = 3, 5  # the defaults of retry.attempts and breaker.failures
MOVES = 0.005  # seconds
HOPS = 3  # a call through the gateway waits so much more often for its turn on the machine
SLACK = 1.0  # seconds, for the call that is the probe, and for the machine

# What the gateway must say of such a replica. From one that is only slow, or silent, balance alone may keep calls away.
STATES = {"killed": "ejected", "failing": "ejected", "lying": "ejected", "throttled": "cooling"}


@pytest.mark.parametrize(
    ("fault", "balance"), [*((fault, "least_load") for fault in FAULTS), ("stalled", "round_robin")]
)
async def test_no_caller_is_told_that_one_replica_of_three_fails(
    fault: str, balance: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with staged(tmp_path, balance) as stage:
        trial = await Trial.run(stage, fault)
    with capsys.disabled():
        print(f"\n{fault}, {balance}: {trial}")

    assert trial.lost == []
    assert max(answer.attempts for answer in trial.answers) <= ATTEMPTS

    calls = len(trial.answers)
    assert max(trial.attempts, sum(len(replica.seen) for replica in stage.replicas)) <= 1.2 * calls + 10

    assert trial.out_at < trial.mended_at
    assert trial.tried[0] <= FAILURES or trial.out_at - trial.broke_at <= 10
    if fault in STATES:
        assert STATES[fault] in trial.states

    before, meanwhile = trial.p99
    assert meanwhile - before <= max(before / 10, MOVES) + HOPS * trial.noise

    assert trial.back_at - trial.mended_at <= trial.back_within + SLACK


@pytest.mark.parametrize("fault", ["killed", "failing"])
async def test_when_all_fail_callers_are_told_in_time_and_nobody_is_flooded(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with staged(tmp_path, "least_load") as stage:
        await stage.load.go_on(BEFORE)
        broke_at = time.monotonic()
        for replica in stage.replicas:
            await replica.fail(fault)
        await stage.load.go_on(FAULT)
        attempts = sum((await stage.watch.look()).attempts.values())
        seen = sum(len(replica.seen) for replica in stage.replicas)
        calls = stage.load.calls
        for replica in stage.replicas:
            await replica.recover()
        mended_at = time.monotonic()
        async with asyncio.timeout(PATIENCE):
            back = await stage.watch.wait_until(lambda look: set(look.states.values()) == {"available"})
        await stage.load.go_on(AFTER)
    failed = [answer for answer in stage.load.answers if not answer.is_whole]
    told = [answer for answer in failed if answer.response.status != 200]
    slowest = max(answer.ended - answer.sent for answer in told)
    with capsys.disabled():
        print(
            f"\nall {fault}: {calls} calls, {len(told)} told of a failure, {len(failed) - len(told)} cut; "
            f"{max(attempts, seen):.0f} attempts ({max(attempts, seen) / calls:.3f}); slowest answer {slowest:.2f} s; "
            f"back after {back.at - mended_at:.2f} s"
        )

    assert max(attempts, seen) <= 1.2 * calls + 10
    assert all(answer.was_cut and answer.sent < broke_at for answer in failed if answer not in told)
    for answer in told:
        response = answer.response
        assert response.status in (502, 503, 504)
        assert response.error["type"] == "server_error"
        assert response.headers["x-should-retry"] == "false"
        assert ("retry-after" in response.headers) == (response.status == 503)
        assert 1 <= answer.attempts <= ATTEMPTS
    assert slowest <= TIMEOUT + SLACK

    assert max(answer.sent for answer in failed) < mended_at
    assert back.at - mended_at <= LONGEST_EJECTION * (1 + JITTER) + SLACK
