"""Where things stand in a model store; what is finished there, unfinished or somebody else's.

Knows names of files and directories; knows nothing of what is in them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from dgemma import checkpoint_manifest, manifest, store_manifest
from dgemma.geometry import Geometry

DEPTH = 4  # of directories below the store
PIN = "pinned"  # a file of this name keeps its directory from being pruned
PRUNED = ".pruned"
UNVERIFIED = ".unverified"  # an engine that is whole, before it is known to be right
ASIDE = ".set-aside"  # an engine that is not to be used; a file in it says why
UNFINISHED = (
    ".partial",
    ".old",
    PRUNED,
    UNVERIFIED,
)  # directories that no one may take for what they become
ENGINE, WEIGHTS = manifest.FILE_NAME, store_manifest.FILE_NAME
REVISION = checkpoint_manifest.FILE_NAME
REPORT = "verification.json"  # in an engine's directory; `dgemma-build verify --json` writes it
REASON = "set-aside.json"
DOWNLOAD = "download.json"  # in a directory that a download fills, and owns
# What an engine or a store consists of: a directory that has one of these should have a manifest.
_CONTENT = ("graph.onnx", "plan.engine", "layer-*.safetensors")
# Whatever this software writes into such a directory. A directory with anything else in it is
# somebody's, and is never removed.
_OURS = (
    ENGINE,
    WEIGHTS,
    REVISION,
    *_CONTENT,
    "*.safetensors",
    "*.log",
    "journal.json",
    "*.partial",
    PIN,
    REPORT,
    REASON,
)


def directories(root: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Every directory of a store that is, was or was to become an engine or a weight store."""
    seen: set[Path] = set()
    below = [(root, depth)]
    while below:
        directory, left = below.pop()
        if (real := directory.resolve()) in seen:
            continue
        seen.add(real)
        if holds_something(directory):
            yield directory
        elif left:
            below += [(path, left - 1) for path in _subdirectories(directory)]


def holds_something(directory: Path) -> bool:
    names = _names(directory)
    return (
        not names.isdisjoint((ENGINE, WEIGHTS, REVISION))
        or directory.suffix in UNFINISHED
        or any(fnmatchcase(name, pattern) for name in names for pattern in _CONTENT)
    )


def foreign(directory: Path, known: Collection[str] = ()) -> list[str]:
    """What stands in a directory and was not written by this software; `known` names it wrote."""
    if directory.suffix in UNFINISHED and (directory / DOWNLOAD).exists():
        return []
    return sorted(
        path.name
        for path in directory.iterdir()
        if path.name not in known
        and (path.is_dir() or not any(fnmatchcase(path.name, ours) for ours in _OURS))
    )


def files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.iterdir() if path.is_file())


def engine_directory(
    root: Path, target: str, precision: str, runtime: str, geometry: Geometry, revision: str = ""
) -> Path:
    """Where an engine is built in a store; `revision` is that of the weights that it will hold."""
    shape = json.dumps(geometry.to_dict(), sort_keys=True)
    key = hashlib.sha256((shape + revision).encode()).hexdigest()[:12]
    return root / "engines" / f"{target}-{precision}-{runtime}-{key}"


def _names(directory: Path) -> set[str]:
    try:
        return {path.name for path in directory.iterdir()}
    except OSError:  # gone, or not ours to read
        return set()


def _subdirectories(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.is_dir())
    except OSError:
        return []
