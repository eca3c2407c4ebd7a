from __future__ import annotations

from statistics import mean, median

import pytest

from dgemma.simulated.convergence import CAP, steps_wanted

DRAWN = [steps_wanted((number + 0.5) / 10_000) for number in range(10_000)]
TAKEN = [CAP if steps is None else steps for steps in DRAWN]


def test_steps_are_distributed_as_published() -> None:
    assert mean(TAKEN) == pytest.approx(26.6, abs=0.1)
    assert median(TAKEN) == 23
    assert TAKEN.count(CAP) / len(TAKEN) == pytest.approx(0.21, abs=0.001)
    assert CAP * TAKEN.count(CAP) / sum(TAKEN) == pytest.approx(0.39, abs=0.015)


def test_there_are_two_kinds_of_canvases() -> None:
    """Most take some twenty steps, few take almost all, and a fifth never converges."""
    assert 200 < TAKEN.count(21) > TAKEN.count(40) < 50 < TAKEN.count(CAP)


def test_extremes_are_steps_too() -> None:
    assert {steps_wanted(u) for u in (0.0, 0.2099)} == {None}
    assert steps_wanted(0.21) == 1
    assert steps_wanted(1.0) == CAP - 1
