"""Whether what an engine needs fits in what a device has left, and tensors inside one piece of it.

Knows bytes; knows nothing of what they are for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dgemma.engine.binding_plan import Arena
from dgemma.errors import ConfigurationError

GB = 1e9

_TORCH = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "U8": torch.uint8,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}


def check_memory(path: Path, needs: Mapping[str, int], free: int) -> None:
    """ConfigurationError with every figure where `needs`, bytes by name, exceed `free`."""
    needed = sum(needs.values())
    if needed > free:
        parts = ", ".join(f"{name} {size / GB:.2f}" for name, size in needs.items())
        raise ConfigurationError(
            f"{path}: needs {needed / GB:.2f} GB of device memory ({parts}), "
            f"{free / GB:.2f} GB are free; lower DGEMMA_SLOTS or NIM_MAX_MODEL_LEN, "
            "choose a precision with smaller weights, or free memory on the device"
        )


def view(arena: Arena, memory: Tensor, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
    """The tensor `name` of an arena that is `memory`, uint8; `shape` is at most its place's."""
    place = arena.places[name]
    dtype = _TORCH[place.dtype]
    size = place.shape if shape is None else shape
    nbytes = math.prod(size) * dtype.itemsize
    return memory[place.offset : place.offset + nbytes].view(dtype).view(size)
