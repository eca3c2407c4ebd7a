"""Who uses or builds a directory of a model store, across processes.

Knows advisory locks, which end with the process that holds them; knows nothing of engines. A user
shares a lock on the manifest itself, so that nothing is written to a store that is read only.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from dgemma.errors import ConfigurationError
from dgemma.profiles.layout import ENGINE, REVISION, WEIGHTS

_CHECK_EVERY_S = 0.2


@dataclass(frozen=True)
class Owner:
    """The process that builds."""

    host: str
    pid: int
    since: str  # UTC

    @classmethod
    def here(cls) -> Owner:
        now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        return cls(socket.gethostname(), os.getpid(), now)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since} UTC"


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
    the directory, gone afterwards.
    """
    path = lock_path(directory)
    descriptor = _acquire(path, waiting)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps(asdict(Owner.here())).encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: see `_is_current`
        os.close(descriptor)


def builder_of(directory: Path) -> str | None:
    """Who builds `directory` now; None where nobody does."""
    path = lock_path(directory)
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return _owner(path)
    finally:
        os.close(descriptor)
    return None


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


def _acquire(path: Path, waiting: Callable[[str], None]) -> int:
    told = False
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigurationError(f"{path}: cannot be written: {error}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_current(path, descriptor):
                return descriptor
        except BlockingIOError:
            pass
        except OSError as error:
            os.close(descriptor)
            raise ConfigurationError(f"{path}: cannot be locked: {error}") from None
        os.close(descriptor)
        if not told:
            told = True
            waiting(_owner(path))
        time.sleep(_CHECK_EVERY_S)


def _is_current(path: Path, descriptor: int) -> bool:
    """The holder before us may have removed the file that we waited for."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _owner(path: Path) -> str:
    try:
        return str(Owner(**json.loads(path.read_text())))
    except (OSError, ValueError, TypeError):
        return "a process that has not said which it is"
