"""The file that says what a weight store holds, and whether it still holds it.

Knows the schema, hashes, and where each tensor's bytes stand; reads no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.precision import BLOCK_SCALE, ROW_SCALE, Policy, TensorSpec
from dgemma.sealed import FileRecord, Sealed

SCHEMA_VERSION = 1
FILE_NAME = "store.json"
REWRITE = "write it again with `dgemma-build quantize --checkpoint DIR --precision P --out STORE`"
_SEALED = Sealed("weight store", FILE_NAME, SCHEMA_VERSION, REWRITE)


@dataclass(frozen=True)
class TensorRecord:
    """One tensor: its file, its dtype as safetensors spells it, and where its bytes begin."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int  # from the beginning of the file

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.dtype, self.shape)


@dataclass(frozen=True)
class SourceRecord:
    """A file of the checkpoint as it was read; size and time say whether to hash it again."""

    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class StoreManifest:
    """What was quantised, from what and how, and the files that hold it."""

    precision: str
    policy: Policy
    geometry: Geometry
    origin: str  # who quantised: this software, or the layout that was taken over
    source: str  # digest of the checkpoint's content
    recipe: str  # digest of what was made of it: precision, policy, formats, rounding
    tensors: Mapping[str, TensorRecord]
    files: Mapping[str, FileRecord]
    sources: Mapping[str, SourceRecord]
    versions: Mapping[str, str]
    schema_version: int = SCHEMA_VERSION

    @property
    def content(self) -> str:
        """Equal for stores that hold the same weights."""
        return self.source + self.recipe

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(record.size for record in self.files.values())

    @property
    def parameters(self) -> list[str]:
        """The network's parameters; their scales are tensors beside them."""
        return [name for name in self.tensors if not name.endswith((BLOCK_SCALE, ROW_SCALE))]

    def write(self, directory: Path) -> None:
        """Written last, so that a directory with a manifest is complete."""
        _SEALED.write(
            directory,
            asdict(self) | {"geometry": self.geometry.to_dict(), "policy": self.policy.to_dict()},
        )

    @classmethod
    def read(cls, directory: Path) -> StoreManifest:
        """ConfigurationError where it is missing, corrupt, changed or of another schema."""

        def parse(data: dict[str, Any]) -> StoreManifest:
            manifest = cls(**_parsed(data))
            manifest._check_places(directory / FILE_NAME)
            return manifest

        return _SEALED.read(directory, parse)

    def _check_places(self, path: Path) -> None:
        for name, tensor in self.tensors.items():
            file = self.files.get(tensor.file)
            if file is None or tensor.offset + tensor.spec.nbytes > file.size:
                raise ConfigurationError(
                    f"{path}: tensor {name} is not inside {tensor.file}; {REWRITE}"
                )

    def expect(
        self,
        directory: Path,
        *,
        precision: str | None = None,
        geometry: Geometry | None = None,
        policy: Policy | None = None,
    ) -> None:
        """ConfigurationError where the store in `directory` is not the one that is asked for."""
        path = directory / FILE_NAME
        if precision is not None and self.precision != precision:
            raise ConfigurationError(
                f"{path}: a store of {self.precision} weights, {precision} is asked for; {REWRITE}"
            )
        if geometry is not None and self.geometry != geometry:
            mine, other = self.geometry.to_dict(), geometry.to_dict()
            keys = ", ".join(key for key in mine if mine[key] != other[key])
            raise ConfigurationError(f"{path}: of another geometry, it differs in {keys}")
        if policy is not None and self.policy != policy:
            raise ConfigurationError(
                f"{path}: other weights are quantised: {self.policy.to_dict()}, "
                f"asked for: {policy.to_dict()}; {REWRITE}"
            )

    def verify(
        self, directory: Path, deep: bool = True, advance: Callable[[int], None] = lambda size: None
    ) -> None:
        """Check that every file is there with its size and, if `deep`, its hash.

        Raises ConfigurationError naming the first file that differs; `advance` is told the bytes
        of each one that does not.
        """
        _SEALED.verify(directory, self.files, deep, advance)


def _parsed(data: dict[str, Any]) -> dict[str, Any]:
    tensors = {
        name: TensorRecord(**(record | {"shape": tuple(record["shape"])}))
        for name, record in data["tensors"].items()
    }
    return data | {
        "policy": Policy.from_dict(data["policy"]),
        "geometry": Geometry.from_dict(data["geometry"]),
        "tensors": tensors,
        "files": {name: FileRecord(**record) for name, record in data["files"].items()},
        "sources": {name: SourceRecord(**record) for name, record in data["sources"].items()},
    }
