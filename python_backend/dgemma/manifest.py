"""The file that says what an engine directory holds, and whether it still holds it.

Knows the schema and file hashes; knows nothing of how an engine is built or run.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry

SCHEMA_VERSION = 1
FILE_NAME = "manifest.json"
REBUILD = "build it again with `dgemma-build engine --checkpoint DIR --target T --precision P`"


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file of the directory."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        return cls(path.stat().st_size, sha256(path))


@dataclass(frozen=True)
class Manifest:
    """What was built, from what, and the files that make it up."""

    target: str
    precision: str
    geometry: Geometry
    source: str  # digest of the checkpoint and of the network's definition
    graph: str  # file name of the graph
    weights: str  # file name of the weight store, safetensors
    files: dict[str, FileRecord]
    versions: dict[str, str]  # of the tools that built it
    schema_version: int = SCHEMA_VERSION

    def write(self, directory: Path) -> None:
        """Written last, so that a directory with a manifest is complete."""
        data = asdict(self) | {"geometry": self.geometry.to_dict()}
        temporary = directory / (FILE_NAME + ".partial")
        temporary.write_text(json.dumps(data, indent=1) + "\n")
        temporary.rename(directory / FILE_NAME)

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """ConfigurationError where the manifest is missing, corrupt or of another schema."""
        path = directory / FILE_NAME
        try:
            data: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError:
            raise ConfigurationError(f"{path}: no engine here; {REBUILD}") from None
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path}: cannot be read: {error}; {REBUILD}") from None
        try:
            version = data["schema_version"]
            if version != SCHEMA_VERSION:
                raise ConfigurationError(
                    f"{path}: schema version {version}, this software reads {SCHEMA_VERSION}; "
                    f"{REBUILD}"
                )
            fields = dict(data)
            fields["geometry"] = Geometry.from_dict(data["geometry"])
            fields["files"] = {k: FileRecord(**v) for k, v in data["files"].items()}
            return cls(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"{path}: not a manifest: {error!r}; {REBUILD}") from None

    def verify(self, directory: Path, deep: bool = True) -> None:
        """Check that every file is there with its size and, if `deep`, its hash.

        Raises ConfigurationError naming the first file that differs.
        """
        for name, record in self.files.items():
            path = directory / name
            if not path.is_file():
                raise ConfigurationError(f"{path}: missing from the engine; {REBUILD}")
            if (size := path.stat().st_size) != record.size:
                raise ConfigurationError(
                    f"{path}: {size} bytes, the manifest says {record.size}; {REBUILD}"
                )
            if deep and sha256(path) != record.sha256:
                raise ConfigurationError(f"{path}: its content has changed; {REBUILD}")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
