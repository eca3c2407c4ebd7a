"""How far a download is: a bar where somebody watches, a line for each tenth where nobody does.

Knows bytes; knows nothing of files.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars


class Progress:
    """`advance` may be called by any thread, and raises KeyboardInterrupt once `stop` was."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bars.add_task("", total=None)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._what, self._done, self._total = "", 0, 0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def expect(self, what: str, size: int) -> None:
        """`size` bytes more are to come."""
        self._what, self._total = what, self._total + size
        self._bars.update(self._task, description=what, total=self._total)

    def advance(self, size: int) -> None:
        if self._stopped.is_set():
            raise KeyboardInterrupt
        with self._lock:
            before, self._done = self._done, self._done + size
            self._bars.advance(self._task, size)
            if self._bars.disable and self._total and self._tenth(before) < self._tenth(self._done):
                share = 100 * self._done // self._total
                self._console.print(
                    f"{self._what}: {share} % of {decimal(self._total)}", markup=False
                )

    def stop(self) -> None:
        self._stopped.set()

    def _tenth(self, done: int) -> int:
        return 10 * done // self._total
