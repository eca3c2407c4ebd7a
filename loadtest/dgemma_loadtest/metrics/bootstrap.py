"""Intervals of confidence where no formula gives one: resampling with a fixed seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dgemma_loadtest.metrics.quantiles import CONFIDENCE

Floats = NDArray[np.float64]
Statistic = Callable[..., float]

RESAMPLES = 1000
SEED = 20_251


@dataclass(frozen=True)
class Estimate:
    """A figure and where it lies with 95 % confidence; None where that cannot be told."""

    value: float
    low: float | None = None
    high: float | None = None


def bootstrap(
    statistic: Statistic,
    *samples: Sequence[float] | Floats,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Estimate:
    """`statistic` of samples that are drawn apart, by the percentile method.

    Raises ValueError where a sample is empty; one of a single value has no interval.
    """
    arrays = [np.asarray(sample, float) for sample in samples]
    if not all(map(len, arrays)):
        raise ValueError("a bootstrap of an empty sample")
    value = float(statistic(*arrays))
    if min(map(len, arrays)) < 2:
        return Estimate(value)
    rng = np.random.default_rng(seed)
    drawn = [
        statistic(*(array[rng.integers(len(array), size=len(array))] for array in arrays))
        for _ in range(resamples)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], method="inverted_cdf")
    return Estimate(value, float(low), float(high))


def share_of(hits: int, count: int) -> Estimate | None:
    """A share with Wilson's interval; None of nothing."""
    if not count:
        return None
    z, share = 1.959964, hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = (
        z
        / (1 + z * z / count)
        * float(np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)))
    )
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half))
