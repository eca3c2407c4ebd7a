"""Files on their way into a model store: room for them, copies that resume, and their place.

Knows directories and bytes; knows nothing of what they mean.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rich.filesize import decimal

from dgemma.errors import ConfigurationError, DgemmaError
from dgemma.profiles.layout import DOWNLOAD
from dgemma.profiles.locks import building
from dgemma.sealed import FileRecord

Advance = Callable[[int], None]
Update = Callable[[bytes], None]
_CHUNK = 4 << 20
_SPARE = 16 << 20  # bytes that manifests and the file system need beside the files


class DownloadFailed(DgemmaError):
    """What is brought did not come as it should; it names the source and the file."""


@dataclass(frozen=True)
class Original:
    """A file of a mirror; `sha256` where the mirror says it."""

    path: Path
    size: int
    sha256: str | None = None


def check_space(root: Path, needed: int, source: object) -> None:
    """ConfigurationError where `needed` bytes more do not fit below `root`."""
    place = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed + _SPARE > free:
        raise ConfigurationError(
            f"{root}: {source} needs {decimal(needed + _SPARE)} and {decimal(free)} are free; "
            f"make room: `dgemma profiles {root} --prune` says what nothing refers to"
        )


@contextmanager
def arriving(directory: Path, source: object) -> Iterator[Path]:
    """The directory to fill on the way to `directory`; what an interrupt leaves in it is kept.

    Raises ConfigurationError where another process brings the same.
    """

    def busy(owner: str) -> None:
        raise ConfigurationError(f"{directory}: is being brought by {owner}")

    with building(directory, busy):
        work = directory.with_name(directory.name + ".partial")
        try:
            work.mkdir(parents=True, exist_ok=True)
            (work / DOWNLOAD).write_text(json.dumps({"source": str(source)}) + "\n")
        except OSError as error:
            raise ConfigurationError(f"{work}: cannot be written: {error.strerror}") from None
        yield work


def settle(work: Path, directory: Path) -> None:
    """Give a filled directory its name; what stood there, which was damaged, goes."""
    (work / DOWNLOAD).unlink()
    old = directory.with_name(directory.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    work.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def copy(original: Original, to: Path, source: object, advance: Advance) -> FileRecord:
    """Copy a file, from where an earlier copy of it ended; `advance` hears bytes.

    Raises DownloadFailed where it cannot be read, or is not what its mirror says of it.
    """
    digest = hashlib.sha256()
    try:
        with original.path.open("rb") as file, to.open("a+b") as out:
            _resume(file, out, digest.update, advance)
            while chunk := file.read(_CHUNK):
                out.write(chunk)
                digest.update(chunk)
                advance(len(chunk))
            out.flush()
            os.fsync(out.fileno())
        record = FileRecord(to.stat().st_size, digest.hexdigest())
    except OSError as error:
        raise DownloadFailed(
            f"{source}: {original.path.name}: {error.strerror or error}; run it again to go on"
        ) from None
    if record.size != original.size or original.sha256 not in (None, record.sha256):
        to.unlink()
        raise DownloadFailed(
            f"{source}: {original.path.name}: is damaged there: it is not what the mirror's "
            "manifest says; repair the mirror, and run it again"
        )
    return record


def _resume(file: BinaryIO, out: BinaryIO, update: Update, advance: Advance) -> None:
    """Go behind what both have in common; the copy loses what differs."""
    out.seek(0)
    while chunk := out.read(_CHUNK):
        if file.read(len(chunk)) != chunk:
            at = out.tell() - len(chunk)
            file.seek(at)
            out.seek(at)
            out.truncate()
            return
        update(chunk)
        advance(len(chunk))
