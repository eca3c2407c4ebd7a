"""Which open requests are late: the first deadline is found without looking at the others.

Knows moments; knows nothing of what happens to whoever is late.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

from dgemma.scheduler.sequence import Sequence


class Deadlines:
    """Requests that have a deadline. One that has ended is forgotten when its deadline passes."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Sequence]] = []
        self._numbers = itertools.count()

    def watch(self, sequence: Sequence) -> None:
        if sequence.deadline is not None:
            heapq.heappush(self._heap, (sequence.deadline, next(self._numbers), sequence))

    def passed(self, now: float) -> Iterator[Sequence]:
        """Those that have not ended though their time is over; each one once."""
        while self._heap and self._heap[0][0] <= now:
            sequence = heapq.heappop(self._heap)[2]
            if not sequence.finished:
                yield sequence
