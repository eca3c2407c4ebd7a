"""What Triton's Python backend needs of the Python that it embeds.

Knows libpython, numpy and how an embedded interpreter finds its packages; knows nothing of
processes.
"""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import sys
import sysconfig
from pathlib import Path

from dgemma.errors import ConfigurationError

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def check_numpy(version: str | None = None) -> None:
    """Refuse numpy 2 and later; `version` defaults to the installed one.

    Tensors between Triton 24.10 and numpy 2 arrive corrupted, without an error.
    """
    version = version or importlib.metadata.version("numpy")
    if int(version.partition(".")[0]) >= 2:
        raise ConfigurationError(
            f"numpy {version} in {sys.prefix}: Triton's Python backend corrupts tensors with "
            "numpy 2; run `pip install 'numpy<2'` in that environment"
        )


def check_executable(executable: Path) -> None:
    """The embedded interpreter finds its packages by way of the `python3` on PATH."""
    python3 = executable.parent / "python3"
    if not python3.exists() or python3.resolve() != executable.resolve():
        raise ConfigurationError(
            f"{python3} is not {executable}, so Triton would use another Python's packages; "
            f"make a virtual environment with `{executable} -m venv .venv` and start from it"
        )


def libpython_directory() -> Path | None:
    """Where libpython is; None where the dynamic linker finds it by itself.

    Raises ConfigurationError saying what to install where this Python has none.
    """
    name = f"libpython{VERSION}.so.1.0"
    prefixes = [sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib"]
    for prefix in prefixes:
        if prefix and (Path(prefix) / name).is_file():
            return Path(prefix)
    if ctypes.util.find_library(f"python{VERSION}"):
        return None
    raise ConfigurationError(
        f"{sys.executable} (Python {sys.version.split()[0]}) is linked statically and there is no "
        f"{name}, which Triton's Python backend loads; install it (Debian and Ubuntu: `apt-get "
        f"install libpython{VERSION}`), or use a Python {VERSION} built with --enable-shared"
    )
