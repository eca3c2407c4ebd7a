"""How many denoise steps canvases take: as published, fixed, or as a run has measured them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from dgemma_loadtest.errors import InputError

Ints = NDArray[np.int64]
CAP = 48
# GPQA: 26.6 steps in the mean, 23 in the median, 21 % of the canvases at the cap.
NEVER = 0.21
CONVERGING = NormalDist(20.87, 6.3)
CANVASES = 400  # of the published sample: an assumption, for how sure its mean is


@dataclass(frozen=True)
class Steps:
    """A sample of canvases; `about` says whose."""

    name: str
    about: str
    sample: tuple[int, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.sample))

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        return rng.choice(np.array(self.sample, np.int64), count)


def published() -> Steps:
    """Evenly over the published distribution."""
    ranks = (np.arange(CANVASES) + 0.5) / CANVASES
    taken = tuple(_steps(float(u)) for u in ranks)
    return Steps("adaptive", "as published of GPQA: mean 26.6, median 23, 21 % at 48", taken)


def fixed(steps: int) -> Steps:
    return Steps(f"{steps} fixed", f"{steps} steps a canvas, never fewer", (steps,))


def measured(histogram: dict[int, int], whose: str) -> Steps:
    """Of a run. Raises InputError where it has no block."""
    sample = tuple(steps for steps, blocks in sorted(histogram.items()) for _ in range(blocks))
    if not sample:
        raise InputError(f"steps: {whose} tells no steps; give a run with complete answers")
    return Steps("measured", f"of {len(sample)} blocks of {whose}", sample)


def named(text: str) -> Steps:
    """`adaptive`, or a number. Raises InputError."""
    if text == "adaptive":
        return published()
    if text.isdigit() and 1 <= int(text) <= CAP:
        return fixed(int(text))
    raise InputError(f"steps: got {text!r}; allowed: adaptive, a number from 1 to {CAP}, or a run")


def means(sample: Sequence[int], resamples: int, seed: int) -> NDArray[np.float64]:
    """Bootstrapped means of a sample."""
    values, rng = np.array(sample, float), np.random.default_rng(seed)
    drawn: NDArray[np.float64] = rng.choice(values, (resamples, len(values))).mean(axis=1)
    return drawn


def _steps(u: float) -> int:
    if u < NEVER:
        return CAP
    rank = (u - NEVER) / (1 - NEVER)
    return min(CAP - 1, max(1, round(CONVERGING.inv_cdf(min(max(rank, 1e-9), 1 - 1e-9)))))
