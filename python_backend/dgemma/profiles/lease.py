"""A file that one process at a time holds, also where several machines share the file system.

Knows who holds it and when a holder is gone; knows nothing of what it guards. A holder of this host
is known by its advisory lock, which ends with it. Of other hosts' such locks some networks' file
systems know nothing, so a holder also writes to the file again and again: whoever waits takes it
away from one of another host that has been silent for `STALE_AFTER_S`, by its own clock.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dgemma.errors import ConfigurationError

STALE_AFTER_S = 60.0
_BEAT_S = 5.0
_CHECK_EVERY_S = 0.2
_MOST = 4096  # bytes of the file


@dataclass(frozen=True)
class Owner:
    """The process that holds it; `beat` counts how often it has said so."""

    host: str
    pid: int
    since: str  # UTC
    beat: int = 0

    @classmethod
    def here(cls) -> Owner:
        now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        return cls(socket.gethostname(), os.getpid(), now)

    @classmethod
    def read(cls, descriptor: int) -> Owner | None:
        """None where it does not say."""
        try:
            return cls(**json.loads(os.pread(descriptor, _MOST, 0)))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, descriptor: int) -> None:
        content = json.dumps(asdict(self)).encode()
        os.pwrite(descriptor, content, 0)
        os.truncate(descriptor, len(content))
        os.fsync(descriptor)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since} UTC"


@contextmanager
def held(path: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold `path`, which exists within the block only; `waiting` is told once for whom.

    Raises ConfigurationError where it cannot be written or locked, and at the end of the block
    where another has taken it meanwhile: this host must have been asleep.
    """
    descriptor = _acquire(path, waiting)
    try:
        with _beating(descriptor):
            yield
        if not _is_current(path, descriptor):
            raise ConfigurationError(
                f"{path}: was silent for {STALE_AFTER_S:g} s and taken over; run this again"
            )
    finally:
        if _is_current(path, descriptor):
            path.unlink(missing_ok=True)  # while it is held: see `_is_current`
        os.close(descriptor)


def holder(path: Path) -> str | None:
    """Who holds `path`; None where nobody does, as far as this host can tell at once."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        owner = Owner.read(descriptor)
        name = "a process that has not said which it is" if owner is None else str(owner)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return name
        elsewhere = owner is not None and owner.host != socket.gethostname()
        silent = time.time() - os.fstat(descriptor).st_mtime
        return name if elsewhere and silent < STALE_AFTER_S else None
    finally:
        os.close(descriptor)


def _acquire(path: Path, waiting: Callable[[str], None]) -> int:
    told = False
    silence = _Silence()
    while True:
        descriptor, created = _opened(path)
        try:
            owner = Owner.read(descriptor)
            if _locked(path, descriptor, wait=created) and _is_current(path, descriptor):
                if created or (owner is not None and owner.host == socket.gethostname()):
                    Owner.here().write(descriptor)
                    kept, descriptor = descriptor, -1
                    return kept
                if silence.of(owner) > STALE_AFTER_S:
                    _remove_silent(path, descriptor)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        if not told:
            told = True
            waiting("a process that has not said which it is" if owner is None else str(owner))
        time.sleep(_CHECK_EVERY_S)


def _opened(path: Path) -> tuple[int, bool]:
    """The file, and whether it is of our making."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with suppress(FileExistsError):
                return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
            with suppress(FileNotFoundError):
                return os.open(path, os.O_RDWR), False
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written: {error}") from None


def _locked(path: Path, descriptor: int, wait: bool) -> bool:
    """`wait` is for a file of our making: others have its lock for an instant at most."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be locked: {error}") from None
    return True


def _is_current(path: Path, descriptor: int) -> bool:
    """The holder before us may have removed the file that we waited for."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


class _Silence:
    """For how long an owner has said nothing new, by the clock of this process."""

    def __init__(self) -> None:
        self._last: Owner | None = None
        self._since: float | None = None

    def of(self, owner: Owner | None) -> float:
        now = time.monotonic()
        if self._since is None or owner != self._last:
            self._last, self._since = owner, now
        return now - self._since


def _remove_silent(path: Path, descriptor: int) -> None:
    """Remove the file that is open, and no other that has come in its place meanwhile."""
    away = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with suppress(OSError):
        path.rename(away)
        if not _is_current(away, descriptor):  # another waiter was faster: this one is its
            os.link(away, path)
        away.unlink()


@contextmanager
def _beating(descriptor: int) -> Iterator[None]:
    over = threading.Event()

    def beat() -> None:
        owner = Owner.here()
        while not over.wait(_BEAT_S):
            owner = replace(owner, beat=owner.beat + 1)
            with suppress(OSError):  # of a full disk; the next one may succeed
                owner.write(descriptor)

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
