"""The shared-memory regions of Triton's Python backend in /dev/shm.

Knows which of them somebody still uses; knows nothing of servers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

DIRECTORY = Path("/dev/shm")
PREFIX = "triton_python_backend_shm_region_"  # the backend's default


def remove_stale(directory: Path = DIRECTORY) -> list[Path]:
    """Remove our user's regions that no living process holds; returns them.

    A server that was killed leaves its regions behind, and they are never freed by themselves.
    """
    # Listed before the processes are looked at: a region is held from its first moment.
    regions = [path for path in directory.glob(PREFIX + "*") if _is_ours(path)]
    if not regions:
        return []
    held = set(_held_files())
    stale = [path for path in regions if str(path) not in held]
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def remove(prefix: str) -> None:
    """Remove the regions whose names begin with `prefix`; their processes have ended."""
    for path in DIRECTORY.glob(prefix + "*"):
        path.unlink(missing_ok=True)


def _is_ours(path: Path) -> bool:
    try:
        return path.stat().st_uid == os.geteuid()
    except FileNotFoundError:
        return False


def _held_files() -> Iterator[str]:
    """Every file that a process of ours has open or maps."""
    for process in Path("/proc").glob("[0-9]*"):
        # In this order: a file is opened before it is mapped, and may be closed once it is.
        with suppress(OSError):  # the process has ended, or belongs to another user
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):  # closed meanwhile
                    yield os.readlink(descriptor)
        with suppress(OSError):
            for line in (process / "maps").read_text().splitlines():
                yield line[line.find("/") :]
