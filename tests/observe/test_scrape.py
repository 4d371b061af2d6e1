"""What a scrape of a full page costs: held to the clock, so apart from the other tests (make test-timed)."""

import asyncio
import time

import pytest

from tests.observe.large import large

LONGEST = 0.050  # seconds for a page of 8,700 series
STALL = 0.010  # seconds for which nothing else gets its turn
TIMES = 20

pytestmark = pytest.mark.timed


async def heartbeat(gaps: list[float]) -> None:
    """What a stream would feel: how long it is until its turn comes again."""
    while True:
        began_at = time.perf_counter()
        await asyncio.sleep(0)
        gaps.append(time.perf_counter() - began_at)


async def test_a_scrape_is_quick_and_streams_do_not_wait_for_it() -> None:
    made = large()
    took: list[float] = []
    stalls: list[float] = []
    for _ in range(TIMES):
        gaps: list[float] = []
        beating = asyncio.ensure_future(heartbeat(gaps))
        began_at = time.perf_counter()
        page = await made.page()
        took.append(time.perf_counter() - began_at)
        beating.cancel()
        stalls.append(max(gaps))
    lines = page.count(b"\n")
    took.sort()
    stalls.sort()
    print(
        f"{lines} lines, {len(page)} bytes: {took[TIMES // 2] * 1e3:.1f} ms, longest stall {stalls[TIMES // 2] * 1e3:.1f} ms"
    )
    # Of several the one in the middle: the machine has other things to do.
    assert took[TIMES // 2] < LONGEST
    assert stalls[TIMES // 2] < STALL
