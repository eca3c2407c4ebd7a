from __future__ import annotations

import time

import pytest

from dgemma.simulated.clock import VirtualClock, WallClock


@pytest.mark.quiet
def test_real_time_is_waited_for_to_a_fraction_of_a_millisecond() -> None:
    """At least once of a few: the machine has other things to do."""
    clock, late = WallClock(), []
    for _ in range(10):
        moment = clock() + 0.003
        clock.wait_until(moment)
        late.append(clock() - moment)
    assert min(late) < 100e-6
    assert all(each >= 0 for each in late)


def test_what_is_past_is_not_waited_for() -> None:
    clock = WallClock()
    began = time.monotonic()
    clock.wait_until(began - 1)
    assert time.monotonic() - began < 1


def test_virtual_time_passes_at_once_and_never_back() -> None:
    clock = VirtualClock(5.0)
    clock.wait_until(3605.0)
    assert clock() == 3605.0
    clock.wait_until(10.0)
    assert clock() == 3605.0
