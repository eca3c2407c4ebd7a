"""The scratch directory of a server, and those that killed servers left behind.

Knows names and process ids; knows nothing of what is put there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "dgemma-triton-"


def make() -> tempfile.TemporaryDirectory[str]:
    """A directory that names the process it belongs to."""
    return tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-")


def remove_stale(parent: Path | None = None) -> list[Path]:
    """Remove our user's directories whose process has ended; returns them."""
    removed = []
    for path in (parent or Path(tempfile.gettempdir())).glob(f"{PREFIX}*-*"):
        owner = path.name.removeprefix(PREFIX).partition("-")[0]
        with contextlib.suppress(FileNotFoundError):
            ours = path.stat().st_uid == os.geteuid()
            if ours and owner.isdecimal() and not Path("/proc", owner).exists():
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path)
    return removed
