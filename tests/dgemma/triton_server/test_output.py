"""Lines of a process arrive whole, in order, and to the last one."""

from __future__ import annotations

import os
import subprocess
import sys

from dgemma.triton_server.output import line_by_line


def run(descriptor: int, program: str) -> None:
    subprocess.run([sys.executable, "-c", program], stdout=descriptor, check=True)


def test_every_line_of_every_process() -> None:
    heard: list[str] = []
    with line_by_line(heard.append) as descriptor:
        run(descriptor, "for i in range(3000): print('a', i)")
        run(descriptor, "import sys; sys.stdout.buffer.write(b'\\xff\\n\\nno end')")
    assert heard == [*(f"a {i}" for i in range(3000)), "\ufffd", "", "no end"]


def test_nothing_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with line_by_line(lambda line: None) as descriptor:
            run(descriptor, "print('x')")
    assert len(os.listdir("/proc/self/fd")) == before
