"""What matters of a machine to an engine: its GPU, its free memory, and which runtimes import.

Knows where a driver and an operating system say so; knows nothing of engines. `torch` counts as a
runtime where it can run kernels on a GPU.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TORCH, COMPILER = "torch", "triton"  # of kernels
RUNTIMES = ("onnxruntime", "tensorrt_rtx", "tensorrt", TORCH)
_QUERY = "name,uuid,compute_cap,driver_version,memory.total,memory.free"
_MIB = 2**20


@dataclass(frozen=True)
class Gpu:
    """One GPU as its driver describes it."""

    name: str
    uuid: str
    compute_capability: int  # 121 for 12.1
    driver: str
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Machine:
    """`runtimes` gives the version of each that imports, `broken` why another does not."""

    gpu: Gpu | None
    free_bytes: int  # of the host's memory
    runtimes: Mapping[str, str]
    broken: Mapping[str, str]

    @classmethod
    def here(cls) -> Machine:
        """This one; importing a runtime is the only proof that its libraries are there."""
        total, free = host_memory()
        gpu = _gpu_here(total, free)
        versions: dict[str, str] = {}
        broken: dict[str, str] = {}
        for name in RUNTIMES:
            try:
                versions[name] = _torch(gpu) if name == TORCH else _version(name)
            except Exception as error:  # a broken installation raises whatever it likes
                broken[name] = next(iter(str(error).splitlines()), type(error).__name__)
        return cls(gpu, free, versions, broken)


def _version(module: str) -> str:
    return str(importlib.import_module(module).__version__)


def _torch(gpu: Gpu | None) -> str:
    """Its version; ImportError where it cannot run kernels, whose launchers triton has compiled."""
    if gpu is None:
        raise ImportError("there is no GPU for its kernels")  # importing it takes seconds
    torch = importlib.import_module(TORCH)
    if torch.version.cuda is None:
        raise ImportError(
            f"torch {torch.__version__} was built without CUDA; pip install torch as PyPI has it"
        )
    try:
        importlib.import_module(COMPILER)
    except ImportError as error:
        raise ImportError(f"{error}; pip install {COMPILER}") from None
    if not any((os.environ.get("CC"), shutil.which("gcc"), shutil.which("clang"))):
        raise ImportError("triton finds no C compiler; install gcc, or name one in CC")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise ImportError("triton finds no Python.h; install Python's headers")
    return str(torch.__version__)


def host_memory(meminfo: Path = Path("/proc/meminfo")) -> tuple[int, int]:
    """Bytes of the host's memory, and those of them that a new process can take."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    total, free = (int(fields[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    return total, free


def parse_gpu(line: str, host_total: int, host_free: int) -> Gpu:
    """A line of `nvidia-smi --query-gpu=… --format=csv,noheader,nounits`.

    Where a GPU shares the host's memory the driver counts none of it as its own.
    """
    name, uuid, capability, driver, total, free = (part.strip() for part in line.split(","))
    own = total.isdecimal() and free.isdecimal()
    return Gpu(
        name,
        uuid,
        int(capability.replace(".", "")),
        driver,
        int(total) * _MIB if own else host_total,
        int(free) * _MIB if own else host_free,
    )


def _gpu_here(host_total: int, host_free: int) -> Gpu | None:
    """The first GPU that CUDA may use; None without a driver."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first in ("", "-1"):
        return None
    command = ["nvidia-smi", "-i", first, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return parse_gpu(found.stdout.splitlines()[0], host_total, host_free)
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None
