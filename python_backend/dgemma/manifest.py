"""The file that says what an engine directory holds, and whether it still holds it.

Knows the schema and file hashes; knows nothing of how an engine is built or run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.precision import Policy

SCHEMA_VERSION = 2
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
class Runtime:
    """What executes an engine; a TensorRT plan runs on one compute capability of one version."""

    flavour: str  # onnxruntime, tensorrt_rtx or tensorrt
    version: str
    compute_capability: int | None = None  # 121 for 12.1; None: any host


@dataclass(frozen=True)
class Binding:
    """An input or output of the graph as it was built; -1 where a size varies."""

    name: str
    dtype: str  # as safetensors spells it; I64 and BOOL for what describes a pass
    shape: tuple[int, ...]
    is_input: bool


@dataclass(frozen=True)
class Manifest:
    """What was built, from what, and the files that make it up."""

    target: str
    precision: str
    policy: Policy  # which weights are quantised, and how
    runtime: Runtime
    geometry: Geometry
    source: str  # digest of the weights, if any, and of the network's definition
    graph: str  # file name of what the runtime executes: an ONNX graph or a plan
    weights: tuple[str, ...]  # file names of the weights, safetensors; none: they are a store's
    bindings: tuple[Binding, ...]
    files: Mapping[str, FileRecord]
    versions: Mapping[str, str]  # of the tools that built it
    schema_version: int = SCHEMA_VERSION

    def write(self, directory: Path) -> None:
        """Written last, so that a directory with a manifest is complete."""
        data = asdict(self) | {
            "geometry": self.geometry.to_dict(),
            "policy": self.policy.to_dict(),
        }
        temporary = directory / (FILE_NAME + ".partial")
        temporary.write_text(json.dumps(data | {"seal": seal(data)}, indent=1) + "\n")
        temporary.rename(directory / FILE_NAME)

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """ConfigurationError where it is missing, corrupt, changed or of another schema."""
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
            if data.pop("seal") != seal(data):
                raise ConfigurationError(f"{path}: its content has changed; {REBUILD}")
            return cls(**_parsed(data))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
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


def seal(data: Mapping[str, Any]) -> str:
    """A digest of a manifest's own fields: a bit that flips in it is found as one in a file is."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _parsed(data: dict[str, Any]) -> dict[str, Any]:
    bindings = (b | {"shape": tuple(b["shape"])} for b in data["bindings"])
    return data | {
        "geometry": Geometry.from_dict(data["geometry"]),
        "policy": Policy.from_dict(data["policy"]),
        "runtime": Runtime(**data["runtime"]),
        "weights": tuple(data["weights"]),
        "bindings": tuple(Binding(**b) for b in bindings),
        "files": {name: FileRecord(**record) for name, record in data["files"].items()},
    }
