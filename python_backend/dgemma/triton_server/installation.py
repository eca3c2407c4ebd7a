"""Where Triton is on this machine, and what it needs around it.

Knows NVIDIA's container and the nvidia-pytriton wheel; knows nothing of models.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dgemma.errors import ConfigurationError
from dgemma.triton_server.python import (
    VERSION,
    check_executable,
    check_numpy,
    libpython_directory,
)

STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Installation:
    """A `tritonserver` that can be started; `environment` is what it wants changed in ours."""

    binary: Path
    backend_directory: Path | None  # None = the server's own default
    environment: Mapping[str, str]

    @classmethod
    def find(cls, scratch: Path) -> Installation:
        """The `tritonserver` on PATH, else the wheel's, whose backend is put together in `scratch`.

        Raises ConfigurationError saying what to install where neither can run here.
        """
        check_numpy()
        on_path = shutil.which("tritonserver")
        if on_path is not None:
            return cls(Path(on_path).resolve(), None, {})
        return cls._of_wheel(scratch)

    @classmethod
    def _of_wheel(cls, scratch: Path) -> Installation:
        package = importlib.util.find_spec("pytriton")
        if package is None or package.origin is None:
            raise ConfigurationError(
                "there is no Triton server here: run `pip install --no-deps nvidia-pytriton==0.7.0`"
                f" in {sys.prefix}, or start inside NVIDIA's tritonserver container"
            )
        site_packages = Path(package.origin).parent.parent
        triton = site_packages / "pytriton" / "tritonserver"
        stubs = triton / "python_backend_stubs"
        if not (stubs / VERSION / STUB).is_file():
            known = ", ".join(sorted(path.name for path in stubs.iterdir()))
            raise ConfigurationError(
                f"Triton has no stub for Python {VERSION}; use one of {known}, best 3.11 or 3.12"
            )
        executable = Path(sys.executable)
        check_executable(executable)
        libpython = libpython_directory()
        backend = scratch / "backends" / "python"
        backend.mkdir(parents=True)
        for file in [*(triton / "backends" / "python").iterdir(), stubs / VERSION / STUB]:
            if file.is_file():
                (backend / file.name).symlink_to(file)
        libraries = [site_packages / "nvidia_pytriton.libs", libpython]
        environment = {
            "PATH": _in_front([executable.parent], os.environ.get("PATH", os.defpath)),
            "LD_LIBRARY_PATH": _in_front(libraries, os.environ.get("LD_LIBRARY_PATH", "")),
        }
        return cls(triton / "bin" / "tritonserver", backend.parent, environment)


def _in_front(directories: list[Path | None] | list[Path], path: str) -> str:
    parts = [str(directory) for directory in directories if directory is not None]
    return os.pathsep.join([*parts, path] if path else parts)
