"""Resampling: repeatable, and as wide as it should be."""

from __future__ import annotations

import numpy as np
import pytest

from dgemma_loadtest.metrics.bootstrap import bootstrap, share_of


def mean(values: np.ndarray) -> float:
    return float(values.mean())


def test_the_same_every_time() -> None:
    assert bootstrap(mean, [1, 2, 3, 4]) == bootstrap(mean, [1, 2, 3, 4])


def test_as_wide_as_the_normal_interval_of_a_mean() -> None:
    sample = np.random.default_rng(3).normal(10, 2, size=400)
    found = bootstrap(mean, sample)
    assert found.low is not None and found.high is not None
    half = 1.96 * sample.std(ddof=1) / 20
    assert found.value - found.low == pytest.approx(half, rel=0.15)
    assert found.high - found.value == pytest.approx(half, rel=0.15)


def test_of_one_value_there_is_no_interval() -> None:
    assert bootstrap(mean, [3.0]).low is None
    with pytest.raises(ValueError):
        bootstrap(mean, [])


def test_shares() -> None:
    """Wilson's interval of 8 in 10: 0.490 to 0.943."""
    found = share_of(8, 10)
    assert found is not None and found.low is not None and found.high is not None
    assert (found.value, round(found.low, 3), round(found.high, 3)) == (0.8, 0.490, 0.943)
    everyone = share_of(5, 5)
    assert everyone is not None and everyone.high == 1.0
    assert share_of(0, 0) is None
