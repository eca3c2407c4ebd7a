"""File systems of a known size, which nobody else on the machine sees.

Knows Linux's mount namespaces; where they are not allowed, it says so.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dgemma.triton_server import shared_memory

_CLONE_NEWNS = 0x00020000
SHARED_MEMORY_MIB = 64  # what container runtimes give


class Mounts:
    """Whether this process may mount; set once, by `enter_namespace`."""

    allowed = False


def enter_namespace() -> None:
    """From here on mounts, and /dev/shm with what is in it, are this process's and its children's.

    The thread that calls it has to be the one that starts all others.
    """
    if ctypes.CDLL(None).unshare(_CLONE_NEWNS) != 0:
        return
    private = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True)
    Mounts.allowed = private.returncode == 0 and _mount(shared_memory.DIRECTORY, SHARED_MEMORY_MIB)


@contextmanager
def of_size(directory: Path, mebibytes: int) -> Iterator[bool]:
    """The directory is a file system of its own inside the block; False where it may not be."""
    mounted = Mounts.allowed and _mount(directory, mebibytes)
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)


@contextmanager
def filled(directory: Path) -> Iterator[int]:
    """There is no room left inside the block; yields the bytes that it took."""
    path = directory / "filler"
    size = 0
    try:
        with path.open("wb", buffering=0) as file:
            for step in (1 << 20, 1 << 12, 1):
                try:
                    while True:
                        size += file.write(bytes(step))
                except OSError:
                    continue
        yield size
    finally:
        path.unlink(missing_ok=True)


def free_bytes(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def _mount(directory: Path, mebibytes: int) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=1777", "tmpfs"]
    return subprocess.run([*command, str(directory)], capture_output=True).returncode == 0
