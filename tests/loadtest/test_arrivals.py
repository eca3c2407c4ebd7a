"""Arrival processes, by their statistics with a fixed seed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest

from dgemma_loadtest import arrivals

COUNT = 20_000


def gaps(times: Iterator[float]) -> np.ndarray:
    return np.diff(list(islice(times, COUNT + 1)))


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def test_poisson() -> None:
    """Mean and deviation of gaps are 1/rate; counts in windows have the variance of their mean."""
    found = gaps(arrivals.poisson(50.0, rng()))
    assert found.mean() == pytest.approx(0.02, rel=0.02)
    assert found.std() == pytest.approx(0.02, rel=0.03)
    counts = np.bincount(np.floor(np.cumsum(found)).astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.15)
    assert np.corrcoef(found[:-1], found[1:])[0, 1] == pytest.approx(0, abs=0.02)


def test_poisson_gaps_are_exponential() -> None:
    """Kolmogorov and Smirnov, at 1 %."""
    found = np.sort(gaps(arrivals.poisson(50.0, rng())))
    distance = np.abs(1 - np.exp(-50 * found) - np.arange(1, COUNT + 1) / COUNT).max()
    assert distance < 1.63 / COUNT**0.5


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_gamma_has_the_deviation_it_is_told(cv: float) -> None:
    found = gaps(arrivals.gamma(20.0, cv, rng()))
    assert found.mean() == pytest.approx(0.05, rel=0.05)
    assert found.std() / found.mean() == pytest.approx(cv, rel=0.05)


def test_constant() -> None:
    assert list(islice(arrivals.constant(4.0), 4)) == [0.0, 0.25, 0.5, 0.75]


def test_trace_counts_from_its_first() -> None:
    assert list(arrivals.trace([13.0, 10.0, 12.0])) == [0.0, 2.0, 3.0]
    assert list(arrivals.trace([10.0, 13.0], speed=2.0)) == [0.0, 1.5]


def test_the_same_seed_gives_the_same_arrivals() -> None:
    assert list(islice(arrivals.poisson(1.0, rng()), 600)) == list(
        islice(arrivals.poisson(1.0, rng()), 600)
    )
