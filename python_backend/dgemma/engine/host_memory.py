"""Whether what will be allocated fits into what this host, or this container, has left.

Knows where Linux says how much that is; knows nothing of what the memory is for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from dgemma.errors import ConfigurationError

logger = logging.getLogger(__name__)

_MIB = 2**20


def free_bytes(root: Path = Path("/")) -> int | None:
    """What can be allocated without swapping; None where the system does not say."""
    known = [amount for amount in (_of_host(root), _of_container(root)) if amount is not None]
    return min(known, default=None)


def check_fits(needs: Mapping[str, int], free: int | None, advice: str) -> None:
    """Log what is needed. ConfigurationError where it is more than there is."""
    parts = ", ".join(f"{name} {size / _MIB:.1f} MiB" for name, size in needs.items())
    if free is not None and sum(needs.values()) > free:
        raise ConfigurationError(f"{parts}: only {free / _MIB:.1f} MiB are free; {advice}")
    logger.info("%s; free: %s MiB", parts, "unknown" if free is None else f"{free / _MIB:.1f}")


def _of_host(root: Path) -> int | None:
    for key, _, value in _lines(root / "proc/meminfo", ":"):
        if key == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _of_container(root: Path) -> int | None:
    """What the control group (version 2) may still have; files that it can forget do not count."""
    group = root / "sys/fs/cgroup"
    try:
        limit = int((group / "memory.max").read_text())  # "max" where there is none
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    files = {key: int(value) for key, _, value in _lines(group / "memory.stat", " ")}
    return max(0, limit - used + files.get("inactive_file", 0))


def _lines(path: Path, separator: str) -> list[tuple[str, str, str]]:
    try:
        return [line.partition(separator) for line in path.read_text().splitlines()]
    except OSError:
        return []
