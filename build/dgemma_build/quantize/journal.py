"""What an interrupted run has finished, and the right to go on with it.

Knows the directory that is worked in beside the store, its lock and its journal; knows nothing of
what a shard holds.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dgemma.errors import ConfigurationError
from dgemma.sealed import FileRecord, sha256
from dgemma.store_manifest import SourceRecord

FILE_NAME = "journal.json"


@dataclass
class Journal:
    """Written after every finished shard; `key` says of which checkpoint and recipe they are."""

    directory: Path
    key: str = ""
    finished: dict[str, FileRecord] = field(default_factory=dict)
    sources: dict[str, SourceRecord] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def open(cls, out: Path) -> Iterator[Journal]:
        """The journal beside `out`, held by one process at a time."""
        directory = work_directory(out)
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigurationError(
                    f"{directory}: another run is writing this store; wait for it, or end it"
                ) from None
            journal = cls.beside(out)
            if not journal.key and any(_foreign(directory)):
                raise ConfigurationError(
                    f"{directory}: exists and holds no unfinished store; "
                    "remove it or choose another --out"
                )
            yield journal
        finally:
            os.close(descriptor)

    @classmethod
    def beside(cls, out: Path) -> Journal:
        """The journal of an unfinished store; one of nothing where it cannot be read."""
        directory = work_directory(out)
        try:
            data = json.loads((directory / FILE_NAME).read_text())
            finished = {name: FileRecord(**record) for name, record in data["finished"].items()}
            sources = {name: SourceRecord(**record) for name, record in data["sources"].items()}
            return cls(directory, data["key"], finished, sources)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls(directory)

    def start(self, key: str, sources: dict[str, SourceRecord]) -> None:
        """Go on with what was done for `key`; forget what was done for any other."""
        if self.key != key:
            self.finished = {}
        self.key, self.sources = key, sources
        for path in self.directory.iterdir():
            if path.name not in self.finished:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._write()

    def is_finished(self, name: str) -> bool:
        """Whether a shard is there, and is what it was when it was finished."""
        record, path = self.finished.get(name), self.directory / name
        if record is None or not path.is_file() or path.stat().st_size != record.size:
            return False
        return sha256(path) == record.sha256

    def finish(self, name: str, record: FileRecord) -> None:
        self.finished[name] = record
        self._write()

    def close(self, out: Path) -> None:
        """Put the finished store in place; an older one goes only once the new one is whole."""
        old = out.with_name(out.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        self.directory.rename(out)
        (out / FILE_NAME).unlink()
        shutil.rmtree(old, ignore_errors=True)

    def _write(self) -> None:
        data = asdict(self)
        del data["directory"]
        temporary = self.directory / (FILE_NAME + ".partial")
        temporary.write_text(json.dumps(data))
        temporary.rename(self.directory / FILE_NAME)


def _foreign(directory: Path) -> Iterator[Path]:
    return (path for path in directory.iterdir() if not path.name.startswith(FILE_NAME))


def work_directory(out: Path) -> Path:
    return out.with_name(out.name + ".partial")
