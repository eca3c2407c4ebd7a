"""What loads an engine of GPUs, by its runtime.

Knows their names; imports the one that is asked for, for each brings libraries that only it needs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from dgemma.engine.base import Capacity, Engine
from dgemma.errors import ConfigurationError
from dgemma.machine import Machine
from dgemma.manifest import Runtime

_PLANS = ("dgemma.engine.tensorrt_engine", "TensorRTEngine")
_LOADERS = {
    "tensorrt_rtx": _PLANS,
    "tensorrt": _PLANS,
    "torch": ("dgemma.engine.torch_engine", "load"),
}


class GpuEngine(Protocol):
    """How each of them is made; ConfigurationError says what is missing, wrong or too large."""

    def __call__(
        self,
        directory: Path,
        store: Path,
        capacity: Capacity,
        *,
        machine: Machine | None = None,
        snapshot_bytes: int = 0,
        progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> Engine: ...


def gpu_engine(runtime: Runtime) -> GpuEngine:
    """ConfigurationError where its libraries do not import."""
    module, name = _LOADERS[runtime.flavour]
    try:
        made: GpuEngine = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ConfigurationError(
            f"{runtime.flavour} engines cannot be run here: {error}; install what is missing or "
            "select an engine of another runtime"
        ) from None
    return made
