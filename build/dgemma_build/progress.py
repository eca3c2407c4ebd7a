"""How far a build is: bars where somebody watches, lines where a log is kept.

Knows terminals and how to reckon the time to go; knows nothing of what is built.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dgemma_build.parts import Progress as Tell

_STEP = 10  # percent from one line to the next


@contextmanager
def shown(
    console: Console, clock: Callable[[], float] = time.monotonic, *, pieces: bool = False
) -> Iterator[Tell]:
    """What is told within the block is shown, bytes or `pieces`; `clock` gives seconds."""
    if not console.is_terminal:
        yield _Lines(console, clock)
        return
    count = MofNCompleteColumn() if pieces else DownloadColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count)
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=console) as bars:
        yield _Bars(bars)


class _Bars:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done)


class _Lines:
    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console, self._clock = console, clock
        self._next: dict[str, int] = {}  # percent at which the next line is due
        self._last: dict[str, int] = {}
        self._first: dict[str, tuple[float, int]] = {}  # when it was told first, and how far it was

    def __call__(self, what: str, done: int, total: int) -> None:
        percent = 100 * done // max(total, 1)
        if percent < self._last.get(what, 0):  # another thing of the same name
            del self._next[what], self._first[what]
        self._last[what] = percent
        since, before = self._first.setdefault(what, (self._clock(), percent))
        if percent >= self._next.get(what, 0):
            self._next[what] = percent // _STEP * _STEP + _STEP
            line = f"{what} {percent} %"
            if before < percent < 100:
                left = (self._clock() - since) * (100 - percent) / (percent - before)
                line += f", {left:.0f} s to go"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
