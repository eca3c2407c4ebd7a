"""Where the kernels that a runtime compiled for this very GPU are kept between starts.

Knows what they depend on and how to write a file whole; knows nothing of kernels. A cache that
cannot be read or written costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from dgemma.machine import Gpu
from dgemma.manifest import Manifest

logger = logging.getLogger(__name__)


def cache_key(manifest: Manifest, file: str, gpu: Gpu) -> str:
    """Changes with the plan `file`, the GPU, the runtime's version and the driver."""
    plan = manifest.files[file].sha256
    runtime = manifest.runtime
    parts = (plan, gpu.name, gpu.uuid, gpu.driver, runtime.flavour, runtime.version)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def default_directory() -> Path:
    """`XDG_CACHE_HOME/dgemma`, by the XDG Base Directory Specification."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "dgemma"


@dataclass(frozen=True)
class RuntimeCache:
    """One file; what was read last is not written again."""

    path: Path

    @classmethod
    def of(cls, directory: Path, manifest: Manifest, file: str, gpu: Gpu) -> RuntimeCache:
        return cls(directory / f"kernels-{cache_key(manifest, file, gpu)}.bin")

    def read(self) -> bytes:
        """Empty where there is none."""
        try:
            return self.path.read_bytes()
        except OSError:
            return b""

    def write(self, data: bytes) -> None:
        """A start that is killed while writing leaves the file as it was."""
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            partial.replace(self.path)
        except OSError as error:
            logger.warning("%s: kernels are not kept for the next start: %s", self.path, error)
