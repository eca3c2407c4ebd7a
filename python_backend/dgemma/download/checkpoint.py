"""A checkpoint's files, and the manifest that makes them a revision.

Knows which files of a repository make up a checkpoint; knows nothing of where they come from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from dgemma.checkpoint_manifest import (
    FILE_NAME,
    CheckpointManifest,
    content_digest,
    content_files,
)
from dgemma.download.arrival import DownloadFailed
from dgemma.errors import ConfigurationError
from dgemma.profiles.layout import DOWNLOAD, ENGINE, WEIGHTS
from dgemma.sealed import FileRecord

_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.model", "LICENSE*")
_OTHERS = (FILE_NAME, DOWNLOAD, ENGINE, WEIGHTS)
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def belonging(names: Iterable[str], source: object) -> list[str]:
    """Those of `names` that a checkpoint consists of.

    ConfigurationError where they are none: no configuration, or no weights.
    """
    found = sorted(
        name
        for name in names
        if name not in _OTHERS and any(fnmatchcase(name, pattern) for pattern in _PATTERNS)
    )
    if "config.json" not in found or not any(name in found for name in _WEIGHTS):
        raise ConfigurationError(
            f"{source}: holds no checkpoint: config.json and {' or '.join(_WEIGHTS)} are needed"
        )
    return found


def manifest_of(
    directory: Path, files: Mapping[str, FileRecord], origin: str, revision: str | None
) -> CheckpointManifest:
    """Of files that have come; without a `revision` it is named by its content.

    Raises DownloadFailed where shards are missing.
    """
    try:
        names = content_files(directory, files)
        index = directory / _WEIGHTS[1]
        shards = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else ()
    except ValueError as error:
        raise DownloadFailed(f"{origin}: {_WEIGHTS[1]}: {error}; repair it there") from None
    if missing := sorted(set(shards) - set(files)):
        raise DownloadFailed(
            f"{origin}: {missing[0]}: missing, though {_WEIGHTS[1]} names it; complete it there, "
            "and run it again"
        )
    content = content_digest({name: files[name].sha256 for name in names})
    everything = content_digest({name: record.sha256 for name, record in files.items()})
    return CheckpointManifest(revision or everything[:12], origin, content, dict(files))
