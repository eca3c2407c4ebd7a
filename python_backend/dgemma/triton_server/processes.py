"""The processes of a session, from /proc.

Knows how to find and to end them; knows nothing of what they are. A session outlives the process
that leads it, which is how orphans are found.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A living process; a zombie is not one."""

    pid: int
    session: int
    executable: str  # file name; empty where it cannot be read


def session_members(session: int) -> list[Process]:
    """The living processes of the session that process `session` leads or led."""
    return [process for process in _processes() if process.session == session]


def is_alive(pid: int) -> bool:
    """Whether there is such a process; a zombie is not one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def started_with(argument: str) -> list[Process]:
    """The living processes of whose command line `argument` is a part."""
    return [process for process in _processes() if argument in _command(process.pid)]


def kill_session(session: int) -> None:
    """End every process of a session at once and wait until they are gone."""
    while members := session_members(session):
        for process in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.01)


def _processes() -> Iterator[Process]:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # "pid (name) state ppid pgrp session …"; the name may hold anything.
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue  # it has ended
        if state not in "ZX":
            yield Process(int(entry.name), int(session), _executable(entry))


def _executable(entry: Path) -> str:
    try:
        return os.path.basename(os.readlink(entry / "exe"))
    except OSError:
        return ""


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""  # it has ended
