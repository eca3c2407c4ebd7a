"""Percentiles without interpolation, with what is known only to be longer, and how sure they are.

A percentile is the nearest rank: the smallest value that at least that share of all values does not
exceed, so it is always a value that was measured. Values that were cut off (a request that did not
end) count by the product-limit estimator of Kaplan and Meier, which is the nearest rank where there
are none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVELS = (0.5, 0.9, 0.95, 0.99)
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Quantile:
    """A percentile with its interval of confidence; None: the sample is too small for an end."""

    value: float
    low: float | None = None
    high: float | None = None
    at_least: bool = False  # so many values were cut off that it is at least this


@dataclass(frozen=True)
class Distribution:
    """A sample in short, in its own unit."""

    count: int  # values, those that were cut off among them
    censored: int  # of these, cut off: at least so large
    mean: float | None  # of those that were not cut off
    stdev: float | None
    min: float | None
    max: float | None
    p50: Quantile | None
    p90: Quantile | None
    p95: Quantile | None
    p99: Quantile | None


def percentile(values: Sequence[float] | Floats, level: float) -> float:
    """The nearest rank; `level` in (0, 1]. Raises ValueError without values."""
    ordered = np.sort(np.asarray(values, float))
    if not len(ordered):
        raise ValueError("a percentile of no values")
    return float(ordered[_rank(len(ordered), level) - 1])


def quantile(
    values: Sequence[float] | Floats,
    level: float,
    censored: Sequence[float] | Floats = (),
) -> Quantile | None:
    """The percentile of `values` and of `censored` ones, which are known to be larger; None
    without any.
    """
    seen, cut = np.sort(np.asarray(values, float)), np.sort(np.asarray(censored, float))
    if not len(seen) and not len(cut):
        return None
    if len(cut):
        return _product_limit(seen, cut, level)
    low, high = interval_ranks(len(seen), level)
    return Quantile(
        float(seen[_rank(len(seen), level) - 1]),
        None if low is None else float(seen[low - 1]),
        None if high is None else float(seen[high - 1]),
    )


def distribution(
    values: Sequence[float] | Floats, censored: Sequence[float] | Floats = ()
) -> Distribution:
    seen, cut = np.asarray(values, float), np.asarray(censored, float)
    every = np.concatenate([seen, cut])
    p50, p90, p95, p99 = (quantile(seen, level, cut) for level in LEVELS)
    return Distribution(
        count=len(every),
        censored=len(cut),
        mean=float(seen.mean()) if len(seen) else None,
        stdev=float(seen.std(ddof=1)) if len(seen) > 1 else None,
        min=float(every.min()) if len(every) else None,
        max=float(every.max()) if len(every) else None,
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
    )


@lru_cache(maxsize=4096)
def interval_ranks(
    count: int, level: float, confidence: float = CONFIDENCE
) -> tuple[int | None, int | None]:
    """Ranks (from 1) of the order statistics that enclose the percentile with this confidence,
    whatever the distribution: the number of values below it is binomial. None where the sample
    does not reach that far.
    """
    tail = (1 - confidence) / 2
    below = _binomial(count, level).cumsum()  # [count + 1], P(at most k values below it)
    # P(value of rank r > percentile) = P(fewer than r values below it)
    low = int(np.searchsorted(below, tail, side="right"))  # largest r with P(< r below) <= tail
    high = int(np.searchsorted(below, 1 - tail)) + 1
    return (low if low >= 1 else None, high if high <= count else None)


def _rank(count: int, level: float) -> int:
    if not 0 < level <= 1:
        raise ValueError(f"level: must be above 0 and at most 1, got {level}")
    return max(1, math.ceil(level * count - 1e-9))  # 0.95 × 20 is 19 and a little, in floats


def _product_limit(seen: Floats, cut: Floats, level: float) -> Quantile:
    total = len(seen) + len(cut)
    values, deaths = np.unique(seen, return_counts=True)
    # A value that was cut off at t is larger than t, so it is still at risk at t.
    gone = np.searchsorted(seen, values) + np.searchsorted(cut, values)
    survival = np.cumprod(1 - deaths / (total - gone))
    reached = np.nonzero(survival <= 1 - level + 1e-12)[0]
    if len(reached):
        return Quantile(float(values[reached[0]]))
    return Quantile(float(max(seen[-1:].max(initial=0.0), cut[-1])), at_least=True)


def _binomial(count: int, share: float) -> Floats:
    """P(k of `count`), for k from 0 to `count`; 0 < share < 1."""
    logs = np.concatenate([[0.0], np.log(np.arange(1, count + 1)).cumsum()])  # of factorials
    k = np.arange(count + 1)
    chances: Floats = np.exp(
        logs[count]
        - logs[k]
        - logs[count - k]
        + k * math.log(share)
        + (count - k) * math.log1p(-share)
    )
    return chances
