"""What a process prints, line by line, to whoever wants to know.

Knows pipes and threads; knows nothing of what lines mean.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# For what was printed last, once the process and all that it started have ended.
_REST_S = 5.0


@contextmanager
def line_by_line(say: Callable[[str], None]) -> Iterator[int]:
    """A file descriptor for processes to write to; each line goes to `say`, on another thread.

    At the end of the block the lines of processes that have ended are waited for. What is not UTF-8
    reads as U+FFFD; `say` may not raise.
    """
    reading, writing = os.pipe()

    def read() -> None:
        with open(reading, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                say(line.rstrip("\n"))

    thread = threading.Thread(target=read, name="output", daemon=True)
    thread.start()
    try:
        yield writing
    finally:
        os.close(writing)
        thread.join(_REST_S)
