"""Whether a target can be built on this machine, and if not, what is missing.

Knows what each flavour of compiler needs; knows nothing of how it is used.
"""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from dgemma.targets import Flavour, Target

_INSTALL: dict[Flavour, str] = {
    "onnxruntime": "pip install onnxruntime",
    "tensorrt_rtx": "pip install tensorrt-rtx",
    "tensorrt": "build in NVIDIA's Triton container, which has it",
    "torch": "pip install torch",
}


@dataclass(frozen=True)
class Machine:
    """What matters of a machine: which modules import, and its GPUs' compute capabilities."""

    import_error: Callable[[str], str | None]
    capabilities: Callable[[], frozenset[str]]


def why_not(target: Target, machine: Machine) -> str | None:
    """What keeps `target` from being built on `machine`; None where nothing does.

    tensorrt-rtx compiles ahead of time for GPUs that are not there; TensorRT times its kernels on
    the GPU it compiles for; torch's are compiled where they run, so there is nothing to compile.
    """
    if (error := machine.import_error(target.flavour)) is not None:
        return f"{target.flavour} does not import ({error}); {_INSTALL[target.flavour]}"
    if target.flavour != "tensorrt" or target.compute_capability in machine.capabilities():
        return None
    present = ", ".join(sorted(machine.capabilities())) or "none"
    return (
        f"tensorrt needs a GPU of compute capability {target.compute_capability} to compile for "
        f"one; here: {present}"
    )


@cache
def import_error(module: str) -> str | None:
    """Why a module cannot be imported; importing is the only proof that its libraries are there."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken installation raises whatever it likes
        return next(iter(str(error).splitlines()), type(error).__name__)
    return None


@cache
def capabilities() -> frozenset[str]:
    """Compute capabilities of the GPUs that the driver knows; empty without a driver."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return frozenset()
    return frozenset(line.strip() for line in found.stdout.splitlines() if line.strip())


HERE = Machine(import_error, capabilities)
