"""How the rows of a pass are spread over cores: all of them together, or in lanes side by side.

Knows partners and how long passes of a shape took; knows nothing of what computes them.
Rows do not depend on each other, but for partners. A lane of one core needs no other core for
anything, where a network is so small that most operations cost less than waking one.
"""

from __future__ import annotations

from collections.abc import Sequence

from dgemma.engine.base import NO_PARTNER, Row

RETRY = 32  # passes of a shape until the slower way is tried again: what is fast changes with load
WARM = 2  # passes of each way before any is believed
FORGET = 0.25  # how much of a slower pass is believed


def lanes_of(rows: Sequence[Row], most: int) -> list[list[int]]:
    """Indices of rows in at most `most` lanes of about equal length, partners in one lane."""
    units: dict[int, list[int]] = {}
    for index in range(len(rows)):
        first = index
        while rows[first].partner != NO_PARTNER:
            first = rows[first].partner
        units.setdefault(first, []).append(index)
    lanes: list[list[int]] = [[] for _ in range(min(most, len(units)))]
    for unit in sorted(units.values(), key=len, reverse=True):
        min(lanes, key=len).extend(unit)
    return [sorted(lane) for lane in lanes]


def lane_rows(rows: Sequence[Row], lane: Sequence[int]) -> list[Row]:
    """The rows of a lane, partners named by their places in it."""
    place = {index: at for at, index in enumerate(lane)}
    return [
        row if row.partner == NO_PARTNER else row._replace(partner=place[row.partner])
        for row in (rows[index] for index in lane)
    ]


class Pace:
    """Which of two ways has been faster of late for passes of one shape."""

    def __init__(self) -> None:
        self._seconds: list[list[float]] = [[], []]  # the last of each is believed
        self._passes = 0

    def choose(self) -> bool:
        """Whether to take the second way."""
        self._passes += 1
        first, second = self._seconds
        for way, seconds in ((False, first), (True, second)):
            if len(seconds) < WARM:
                return way
        return (second[-1] < first[-1]) != (self._passes % RETRY == 0)

    def took(self, second: bool, seconds: float) -> None:
        """The first pass of a way says little: it has memory to find."""
        known = self._seconds[second]
        if len(known) < WARM:
            known.append(seconds)
        else:
            known[-1] = min(known[-1], seconds) + FORGET * max(0.0, seconds - known[-1])
