"""The file that says what a revision of a checkpoint holds, and whether it still holds it.

Knows the schema, hashes, and which files make up a checkpoint's content; reads no weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dgemma.sealed import FileRecord, Sealed

SCHEMA_VERSION = 1
FILE_NAME = "revision.json"
_REMEDY = "bring it again with `dgemma download-to-cache`"
_SEALED = Sealed("checkpoint revision", FILE_NAME, SCHEMA_VERSION, _REMEDY)
_CONFIG, _INDEX, _SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
_QUANTISED = "hf_quant_config.json"


@dataclass(frozen=True)
class CheckpointManifest:
    """One revision of a checkpoint, and the files that make it up."""

    revision: str  # the name of its directory
    origin: str  # where it was brought from
    content: str  # digest of what decides the weights; the `source` of weight stores made of it
    files: Mapping[str, FileRecord]
    schema_version: int = SCHEMA_VERSION

    def write(self, directory: Path) -> None:
        """Written last, so that a directory with a manifest is complete."""
        _SEALED.write(directory, asdict(self))

    @classmethod
    def read(cls, directory: Path) -> CheckpointManifest:
        """ConfigurationError where it is missing, corrupt, changed or of another schema."""
        return _SEALED.read(directory, _parsed)

    def verify(
        self, directory: Path, deep: bool = True, advance: Callable[[int], None] = lambda size: None
    ) -> None:
        """Check that every file is there with its size and, if `deep`, its hash.

        Raises ConfigurationError naming the first file that differs.
        """
        _SEALED.verify(directory, self.files, deep, advance)


def content_of(checkpoint: Path) -> str | None:
    """What tells a checkpoint's weights from others; None where it was not brought by us.

    Raises ConfigurationError where its manifest cannot be read.
    """
    if not (checkpoint / FILE_NAME).exists():
        return None
    return CheckpointManifest.read(checkpoint).content


def content_digest(hashes: Mapping[str, str]) -> str:
    """Of file name -> SHA-256; does not depend on where or when the files were copied."""
    lines = [f"{name} {digest}\n" for name, digest in sorted(hashes.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def content_files(directory: Path, names: Mapping[str, Any]) -> set[str]:
    """Those of `names` that decide the weights, as the builder counts them.

    Raises ValueError where the index of the weights is none.
    """
    weights = {_SINGLE}
    if _INDEX in names:
        try:
            weights = set(json.loads((directory / _INDEX).read_text())["weight_map"].values())
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no index of weights: {error!r}") from None
    return {name for name in (_CONFIG, _QUANTISED, *weights) if name in names}


def is_name(name: object) -> bool:
    """Whether it names something inside a directory, and nothing elsewhere."""
    return isinstance(name, str) and "/" not in name and name not in ("", ".", "..")


def _parsed(data: dict[str, Any]) -> CheckpointManifest:
    files = {name: FileRecord(**record) for name, record in data["files"].items()}
    for name in (data["revision"], *files):
        if not is_name(name):
            raise ValueError(f"{name!r} is no name of a file here")
    return CheckpointManifest(**data | {"files": files})
