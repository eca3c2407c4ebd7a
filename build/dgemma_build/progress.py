"""How far a build is: bars where somebody watches, lines where a log is kept.

Knows terminals; knows nothing of what is built.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from dgemma_build.parts import Progress as Tell

_STEP = 10  # percent from one line to the next


@contextmanager
def shown(console: Console) -> Iterator[Tell]:
    """What is told within the block is shown."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
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
    def __init__(self, console: Console) -> None:
        self._console = console
        self._next: dict[str, int] = {}  # percent at which the next line is due

    def __call__(self, what: str, done: int, total: int) -> None:
        percent = 100 * done // max(total, 1)
        if percent >= self._next.get(what, 0):
            self._next[what] = percent // _STEP * _STEP + _STEP
            line = f"{what} {percent} %"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
