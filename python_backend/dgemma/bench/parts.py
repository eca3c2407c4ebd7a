"""Where the time of a pass goes, operation by operation.

Knows how to stand between a network and its operations; knows nothing of what they compute.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch

from dgemma.bench.report import Part
from dgemma.engine.operations import Operations


class WatchedOperations:
    """Operations that are timed while one asks for it, and else are what they were.

    On a GPU a part begins where the part before it ends, so all of them together are the pass.
    """

    def __init__(self, operations: Operations, device: torch.device) -> None:
        self._operations, self._device = operations, device
        self._marks: list[tuple[str, Any]] | None = None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation: Callable[..., Any] = getattr(self._operations, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            result = operation(*args, **kwargs)
            if self._marks is not None:
                self._marks.append((name, self._now()))
            return result

        return watched

    @contextmanager
    def watch(self, parts: dict[str, list[float]]) -> Iterator[None]:
        """Add the milliseconds of every operation meanwhile to `parts`, by its name."""
        self._keep_busy()
        first, self._marks = self._now(), []
        try:
            yield
            marks = self._marks
        finally:
            self._marks = None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        for name, mark in marks:
            parts[name].append(self._between(first, mark))
            first = mark

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, first: Any, last: Any) -> float:
        if self._device.type != "cuda":
            return float(1e3 * (last - first))
        return float(first.elapsed_time(last))

    def _keep_busy(self) -> None:
        """Work enough for the host to queue the whole pass behind it: no gaps are measured."""
        if self._device.type == "cuda":
            a = torch.randn(8192, 8192, device=self._device, dtype=torch.bfloat16)
            for _ in range(40):
                torch.mm(a, a)


def parts_of(call: Callable[[], object], watched: WatchedOperations, runs: int) -> list[Part]:
    """Of calls that run the watched operations as they are, outside any graph; medians of runs."""
    totals: dict[str, list[float]] = defaultdict(list)
    counts: dict[str, int] = {}
    for _ in range(runs):
        found: dict[str, list[float]] = defaultdict(list)
        with watched.watch(found):
            call()
        for name, times in found.items():
            totals[name].append(sum(times))
            counts[name] = len(times)
    return [
        Part(name=name, calls=counts[name], ms=sorted(times)[len(times) // 2])
        for name, times in totals.items()
    ]
