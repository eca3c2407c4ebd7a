"""Percentiles with answers known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgemma_loadtest.metrics.quantiles import (
    distribution,
    interval_ranks,
    percentile,
    quantile,
)

values = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)


def test_is_the_nearest_rank() -> None:
    assert percentile([15, 20, 35, 40, 50], 0.05) == 15
    assert percentile([15, 20, 35, 40, 50], 0.3) == 20
    assert percentile([15, 20, 35, 40, 50], 0.4) == 20
    assert percentile([15, 20, 35, 40, 50], 0.5) == 35
    assert percentile([15, 20, 35, 40, 50], 1.0) == 50


def test_floats_do_not_move_a_rank() -> None:
    """0.95 × 20 is 19.000000000000004 or so in floats."""
    assert percentile(range(1, 21), 0.95) == 19
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile(range(1, 1001), 0.29) == 290


@given(values, st.floats(0.01, 1.0))
def test_is_a_value_that_so_many_do_not_exceed(sample: list[float], level: float) -> None:
    found = percentile(sample, level)
    below = sum(value <= found for value in sample)
    assert found in sample and below >= level * len(sample) - 1e-9
    assert sum(value < found for value in sample) < level * len(sample) + 1e-9


@given(values)
def test_nothing_cut_off_is_the_nearest_rank(sample: list[float]) -> None:
    """A value that was cut off before all others tells nothing, so it changes nothing."""
    found = quantile(sample, 0.5, [-1.0])
    assert found is not None and found.value == percentile(sample, 0.5)


def test_cut_off_values_count_as_longer() -> None:
    """Kaplan and Meier by hand: 1, 2, 3+, 4: S = 3/4, 1/2, 1/2, 0."""
    found = quantile([1, 2, 4], 0.75, [3])
    assert found is not None and (found.value, found.at_least) == (4, False)
    found = quantile([1, 2], 0.9, [3, 5])
    assert found is not None and (found.value, found.at_least) == (5, True)
    lost = quantile([], 0.5, [7.0])
    assert lost is not None and (lost.value, lost.at_least) == (7.0, True)


def test_nobody_is_better_off_for_not_waiting() -> None:
    patient = quantile([1, 1, 1, 9, 9], 0.8)
    impatient = quantile([1, 1, 1], 0.8, [5, 5])
    assert patient is not None and patient.value == 9
    assert impatient is not None and impatient.value >= 5 and impatient.at_least


def test_ranks_of_an_interval() -> None:
    """The table in any textbook: of 100 values, the 40th and the 61st enclose the median."""
    assert interval_ranks(100, 0.5) == (40, 61)
    assert interval_ranks(6, 0.5) == (1, 6)
    assert interval_ranks(5, 0.5) == (None, None)


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    truth = -math.log(0.05)  # p95 of the exponential distribution
    hits = 0
    for _ in range(1000):
        found = quantile(rng.exponential(size=400), 0.95)
        assert found is not None and found.low is not None and found.high is not None
        hits += found.low <= truth <= found.high
    assert 945 <= hits <= 985  # at least 95 %, and not by intervals that are far too wide


def test_a_sample_in_short() -> None:
    found = distribution([1.0, 2.0, 3.0], [4.0])
    assert (found.count, found.censored, found.mean, found.min, found.max) == (4, 1, 2.0, 1.0, 4.0)
    nothing = distribution([])
    assert (nothing.count, nothing.p50, nothing.mean) == (0, None, None)
    with pytest.raises(ValueError):
        percentile([], 0.5)
