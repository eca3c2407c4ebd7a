"""A checkpoint from a directory, offline.

Knows what names a revision and what may be hashed already; the copy is `arrival`'s business.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

from dgemma.checkpoint_manifest import FILE_NAME, CheckpointManifest
from dgemma.download.arrival import Original, arriving, check_space, copy, settle
from dgemma.download.checkpoint import belonging, manifest_of
from dgemma.download.progress import Progress
from dgemma.errors import ConfigurationError
from dgemma.profiles.inventory import FoundCheckpoint, read
from dgemma.profiles.pointer import CHECKPOINTS

_COMMIT = re.compile(r"[0-9a-f]{40}")


def bring_checkpoint(directory: Path, root: Path, progress: Progress) -> FoundCheckpoint:
    """Copy a checkpoint into the store `root`; nothing is copied that is there already.

    Raises ConfigurationError where it is none or does not fit, DownloadFailed where it is damaged.
    """
    known = CheckpointManifest.read(directory) if (directory / FILE_NAME).exists() else None
    originals = _originals(directory, known)
    revision = known.revision if known else _named_by_hub(directory)
    if revision is not None and (found := whole(root / CHECKPOINTS / revision)) is not None:
        return found
    key = revision or _key(originals)
    with arriving(root / CHECKPOINTS / key, directory) as work:
        size = sum(original.size for original in originals)
        here = sum(path.stat().st_size for path in work.iterdir() if path.is_file())
        check_space(root, max(0, size - here), directory)
        progress.expect(f"checkpoint from {directory}", size)
        files = {
            original.path.name: copy(
                original, work / original.path.name, directory, progress.advance
            )
            for original in originals
        }
        origin = known.origin if known else str(directory)
        manifest = known or manifest_of(work, files, origin, revision)
        place = root / CHECKPOINTS / manifest.revision
        if place.name != key and (found := whole(place)) is not None:
            shutil.rmtree(work)
            return found
        manifest.write(work)
        settle(work, place)
    return _found(place)


def whole(place: Path) -> FoundCheckpoint | None:
    """The revision that stands there already, if not a bit of it has changed."""
    found = read(place, deep=True) if place.is_dir() else None
    return found if isinstance(found, FoundCheckpoint) else None


def _found(place: Path) -> FoundCheckpoint:
    found = read(place)
    if not isinstance(found, FoundCheckpoint):
        raise ConfigurationError(getattr(found, "why", f"{place}: no checkpoint"))
    return found


def _originals(directory: Path, known: CheckpointManifest | None) -> list[Original]:
    if known is not None:
        return [Original(directory / n, r.size, r.sha256) for n, r in known.files.items()]
    names = belonging((path.name for path in directory.iterdir() if path.is_file()), directory)
    return [Original(directory / name, (directory / name).stat().st_size) for name in names]


def _named_by_hub(directory: Path) -> str | None:
    """A snapshot in Hugging Face's cache is named by its commit."""
    return directory.name if _COMMIT.fullmatch(directory.name) else None


def _key(originals: list[Original]) -> str:
    """Names what was begun, before its content is known."""
    stated = "".join(f"{o.path} {o.size} {o.path.stat().st_mtime_ns}\n" for o in originals)
    return f"incoming-{hashlib.sha256(stated.encode()).hexdigest()[:12]}"
