"""Waking up: in order, on time, whoever gives up meanwhile."""

from __future__ import annotations

import asyncio
import time

import pytest

from dgemma_loadtest.clock import Clock


def test_counts_from_its_epoch() -> None:
    clock = Clock(time.time() - 5.0)
    assert clock.now() == pytest.approx(5.0, abs=0.1)
    assert Clock().now() == pytest.approx(0.0, abs=0.1)


def test_sleepers_wake_in_order_and_never_early() -> None:
    async def work() -> list[tuple[int, float]]:
        clock, woken = Clock(), []

        async def sleep(number: int, at_s: float) -> None:
            await clock.until(at_s)
            woken.append((number, clock.now() - at_s))

        begins = clock.now() + 0.02
        delays = [0.05, 0.01, 0.03, 0.01, -9.0, 0.02]
        tasks = [asyncio.create_task(sleep(n, begins + d)) for n, d in enumerate(delays)]
        gone = asyncio.create_task(sleep(99, begins + 0.005))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(*tasks)
        return woken

    woken = asyncio.run(work())
    assert [number for number, _ in woken] == [4, 1, 3, 5, 2, 0]
    assert all(late >= 0 for _, late in woken)


@pytest.mark.quiet
def test_wakes_well_within_a_millisecond() -> None:
    async def work() -> list[float]:
        clock, late = Clock(), []
        for _ in range(200):
            at_s = clock.now() + 0.0023
            await clock.until(at_s)
            late.append(clock.now() - at_s)
        return late

    late = sorted(asyncio.run(work()))
    assert late[100] < 0.0005  # asyncio's own timers: 0.6 ms in the median
