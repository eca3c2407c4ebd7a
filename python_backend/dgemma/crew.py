"""Threads that stand by to compute parts of one job beside the caller's.

Knows how to wake them, on which cores they stay and when all parts are done; knows nothing of what
parts are. A job takes less time than handing it to an executor and waiting for what that promises.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread, current_thread, get_ident, main_thread

Part = Callable[[], None]
Ends = SimpleQueue[BaseException | None]  # of the parts of one job
Tasks = SimpleQueue[tuple[Part, Ends] | None]


class Crew:
    """As many threads as a job has parts, the caller's among them."""

    def __init__(self, size: int) -> None:
        """`size` 1 has no threads; they end with the last reference to the crew.

        A crew for all cores stays on them, one thread each: after a pause the system would wake two
        of them on one core, and parts that wait for each other would take turns there.
        """
        self.size = size
        cores = sorted(os.sched_getaffinity(0))
        homes = [{core} for core in cores] if size == len(cores) else [set(cores)] * size
        self._home, self._caller = homes[0], -1
        self._tasks: list[Tasks] = []
        for home in homes[1:]:
            tasks: Tasks = SimpleQueue()
            Thread(target=_work, args=(tasks, home), name="crew", daemon=True).start()
            weakref.finalize(self, tasks.put, None)
            self._tasks.append(tasks)

    def run(self, parts: Sequence[Part]) -> None:
        """All parts, the last on the caller's thread; returns when none is running any more.

        Raises the error of one, but waits for the others.
        """
        if self._caller != get_ident():
            self._join()
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

    def _join(self) -> None:
        """Have the calling thread stay on its core, too.

        The main thread may not: processes and threads that it starts would have to stay there.
        """
        self._caller = get_ident()
        if current_thread() is not main_thread():
            os.sched_setaffinity(0, self._home)


def _work(tasks: Tasks, home: set[int]) -> None:
    os.sched_setaffinity(0, home)
    while (task := tasks.get()) is not None:
        part, ends = task
        try:
            part()
        except BaseException as error:
            ends.put(error)
        else:
            ends.put(None)
        del task, part, ends  # what they hold is not kept until the next job
