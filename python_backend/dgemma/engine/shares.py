"""How the tokens of a pass's rows are shared out over cores, and what shares have in common.

Knows tokens and numbers of passes; knows nothing of what computes them. Rows, and the tokens of a
row, depend on each other through K/V alone: a share of every row's tokens needs those of the other
shares once a layer, and nothing else of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

LEAST = 16  # tokens of a share: with fewer, starting operations costs more than computing them
FIRST = 2**40  # number of a pass: larger than the size of any tensor


def share_out(length: int, most: int) -> list[range]:
    """Tokens of a row of `length` in at most `most` shares of one size; the last may overlap."""
    size = -(-length // max(1, min(most, length // LEAST)))
    return [range(min(at, length - size), min(at + size, length)) for at in range(0, length, size)]


class Meeting:
    """Numbers by which shares of a pass know how far the others are."""

    def __init__(self, layers: int, shares: int) -> None:
        self.number = np.full((), FIRST)  # of the pass
        # The last pass of each share, layer by layer.
        self.arrived = np.zeros((layers, shares), np.int64)

    def begin(self) -> None:
        """The next pass; no share may be running."""
        self.number += 1

    @contextmanager
    def attended(self) -> Iterator[None]:
        """Whoever fails in this block keeps nobody waiting; the pass is void."""
        try:
            yield
        except BaseException:
            self.arrived[:] = self.number
            raise
