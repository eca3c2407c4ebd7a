"""Threads that stand by to compute parts of one job beside the caller's.

Knows how to wake them and when all parts are done; knows nothing of what parts are. A job takes
less time than handing it to an executor and waiting for what that promises.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread

Part = Callable[[], None]
Ends = SimpleQueue[BaseException | None]  # of the parts of one job
Tasks = SimpleQueue[tuple[Part, Ends] | None]


class Crew:
    """As many threads as a job has parts, the caller's among them."""

    def __init__(self, size: int) -> None:
        """`size` 1 has no threads; they end with the last reference to the crew."""
        self.size = size
        self._tasks: list[Tasks] = []
        for _ in range(size - 1):
            tasks: Tasks = SimpleQueue()
            Thread(target=_work, args=(tasks,), name="crew", daemon=True).start()
            weakref.finalize(self, tasks.put, None)
            self._tasks.append(tasks)

    def run(self, parts: Sequence[Part]) -> None:
        """All parts, the last on the caller's thread; returns when none is running any more.

        Raises the error of one, but waits for the others.
        """
        *others, own = parts
        assert len(others) <= len(self._tasks), "a crew has a thread for every part"
        ends: Ends = SimpleQueue()
        for tasks, part in zip(self._tasks, others, strict=False):
            tasks.put((part, ends))
        try:
            own()
        finally:
            errors = [error for _ in others if (error := ends.get()) is not None]
        for error in errors:
            raise error


def _work(tasks: Tasks) -> None:
    while (task := tasks.get()) is not None:
        part, ends = task
        try:
            part()
        except BaseException as error:
            ends.put(error)
        else:
            ends.put(None)
        del task, part, ends  # what they hold is not kept until the next job
