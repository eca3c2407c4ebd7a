"""When requests of an open loop are due, whatever becomes of those before them.

Pure: seconds from the beginning, as endless as the process is, from a generator of random numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np


def poisson(rate: float, rng: np.random.Generator) -> Iterator[float]:
    """Gaps are exponential: users that know nothing of each other. `rate` per second."""
    return gamma(rate, 1.0, rng)


def gamma(rate: float, cv: float, rng: np.random.Generator) -> Iterator[float]:
    """Gaps of mean 1/rate whose deviation is `cv` times that: above 1 bursts, below 1 evenness."""
    shape = 1 / cv**2
    return itertools.accumulate(_draws(shape, 1 / (rate * shape), rng))


def constant(rate: float) -> Iterator[float]:
    """Every 1/rate seconds, the first at once."""
    return (number / rate for number in itertools.count())


def trace(times_s: Sequence[float], speed: float = 1.0) -> Iterator[float]:
    """As they were once: counted from the first, `speed` times as fast."""
    ordered = sorted(times_s)
    return ((at - ordered[0]) / speed for at in ordered)


def _draws(shape: float, scale: float, rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from map(float, rng.gamma(shape, scale, 256))
