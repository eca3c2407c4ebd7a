"""Which open requests are late: the first deadline is found without looking at the others.

Knows moments; knows nothing of what happens to whoever is late.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

from dgemma.scheduler.sequence import Sequence


class Deadlines:
    """Open requests that have a deadline."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Sequence]] = []
        self._numbers = itertools.count()
        self._ended = 0  # of those in the heap

    def __len__(self) -> int:
        return len(self._heap)

    def watch(self, sequence: Sequence) -> None:
        if sequence.deadline is not None:
            heapq.heappush(self._heap, (sequence.deadline, next(self._numbers), sequence))

    def forget(self, sequence: Sequence) -> None:
        """A request that was watched, if it has a deadline, has ended."""
        if sequence.deadline is None:
            return
        self._ended += 1
        # Deadlines may be far off: ended requests are kept no longer than as many that are open.
        if 2 * self._ended > len(self._heap):
            self._heap = [entry for entry in self._heap if not entry[2].finished]
            heapq.heapify(self._heap)
            self._ended = 0

    def late(self, now: float) -> Iterator[Sequence]:
        """Open requests whose time is over; whoever asks ends each before the next."""
        while self._heap and self._heap[0][0] <= now:
            sequence = self._heap[0][2]
            if not sequence.finished:
                yield sequence
            else:
                heapq.heappop(self._heap)
                self._ended -= 1
