"""A JSON file that says what a directory holds, and whether both are still what was written.

Knows schema versions, the seal on the file itself, and the hashes of the files it lists; knows
nothing of what else it says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dgemma.errors import ConfigurationError

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file of the directory."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        return cls(path.stat().st_size, sha256(path))


@dataclass(frozen=True)
class Sealed:
    """One kind of directory: what it is called, its file, and how to make another."""

    what: str
    file_name: str
    schema_version: int
    remedy: str

    def write(self, directory: Path, data: Mapping[str, Any]) -> None:
        """Written last, so that a directory with this file is complete."""
        temporary = directory / (self.file_name + ".partial")
        temporary.write_text(json.dumps({**data, "seal": seal(data)}, indent=1) + "\n")
        temporary.rename(directory / self.file_name)

    def read(self, directory: Path, parse: Callable[[dict[str, Any]], Parsed]) -> Parsed:
        """What `parse` makes of the file's fields.

        ConfigurationError where the file is missing, corrupt, changed or of another schema, or
        where `parse` raises KeyError, TypeError, ValueError or AttributeError.
        """
        path = directory / self.file_name
        try:
            data: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError:
            raise self._error(path, f"no {self.what} here") from None
        except (OSError, ValueError) as error:
            raise self._error(path, f"cannot be read: {error}") from None
        try:
            version = data["schema_version"]
            if version != self.schema_version:
                raise self._error(
                    path,
                    f"schema version {version}, this software reads {self.schema_version}",
                )
            if data.pop("seal") != seal(data):
                raise self._error(path, "its content has changed")
            return parse(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._error(path, f"not a manifest: {error!r}") from None

    def verify(
        self,
        directory: Path,
        files: Mapping[str, FileRecord],
        deep: bool,
        advance: Callable[[int], None] = lambda size: None,
    ) -> None:
        """Check that every file is there with its size and, if `deep`, its hash.

        Raises ConfigurationError naming the first file that differs; `advance` is told the bytes
        of each one that does not.
        """
        for name, record in files.items():
            path = directory / name
            if not path.is_file():
                raise self._error(path, f"missing from the {self.what}")
            if (size := path.stat().st_size) != record.size:
                raise self._error(path, f"{size} bytes, {self.file_name} says {record.size}")
            if deep and sha256(path) != record.sha256:
                raise self._error(path, "its content has changed")
            advance(record.size)

    def _error(self, path: Path, why: str) -> ConfigurationError:
        return ConfigurationError(f"{path}: {why}; {self.remedy}")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(data: Mapping[str, Any]) -> str:
    """A digest of a manifest's own fields: a bit that flips in it is found as one in a file is."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
