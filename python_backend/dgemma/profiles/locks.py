"""Who uses or builds a directory of a model store, across processes.

Knows locks, which end with the process that holds them; knows nothing of engines. A user
shares a lock on the manifest itself, so that nothing is written to a store that is read only.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dgemma.profiles import lease
from dgemma.profiles.layout import ENGINE, REVISION, WEIGHTS


class InUse:
    """Directories that this process uses: nobody may remove them until `close`, or its end."""

    def __init__(self) -> None:
        self._descriptors: list[int] = []

    def add(self, directory: Path) -> None:
        """Where the file system has no locks, as some networks' have not, there is none."""
        descriptor = os.open(_manifest_of(directory) or directory, os.O_RDONLY)
        self._descriptors.append(descriptor)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # others have it for an instant at most

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())


@contextmanager
def unused(directory: Path) -> Iterator[bool]:
    """Whether nobody uses `directory`; if so, nobody begins to within the block."""
    held = [os.open(directory, os.O_RDONLY)]
    try:
        # A run that writes weights locks the directory, and some networks lock no directories.
        free = _exclusively(held[0], default=True)
        if (file := _manifest_of(directory)) is not None:
            held.append(os.open(file, os.O_RDWR))  # over NFS, for writing or not at all
            free = _exclusively(held[1], default=False) and free
        yield free
    finally:
        for descriptor in held:
            os.close(descriptor)


@contextmanager
def building(
    directory: Path, waiting: Callable[[str], None] = lambda owner: None
) -> Iterator[None]:
    """The right to build `directory`, which another process may have had before.

    `waiting` is told once who has it, and may raise so as not to wait. The lock is a file beside
    the directory, gone afterwards, and holds between machines too: see `lease`.
    """
    with lease.held(lock_path(directory), waiting):
        yield


def builder_of(directory: Path) -> str | None:
    """Who builds `directory` now; None where nobody does."""
    return lease.holder(lock_path(directory))


def lock_path(directory: Path) -> Path:
    return directory.with_name(directory.name + ".lock")


def _manifest_of(directory: Path) -> Path | None:
    paths = (directory / name for name in (ENGINE, WEIGHTS, REVISION))
    return next((path for path in paths if path.exists()), None)


def _exclusively(descriptor: int, default: bool) -> bool:
    """Lock; `default` where the file system has no such lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return default
    return True
