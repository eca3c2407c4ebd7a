"""A safetensors file written tensor by tensor.

Knows the file format, so that neither the file nor the checkpoint is ever whole in memory and an
ONNX graph can point into it; knows nothing of how weights are quantised.
Format: https://huggingface.co/docs/safetensors (8 bytes of header length, JSON header, raw data).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dgemma.precision import TensorSpec

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes stand in the file."""

    offset: int
    length: int


def write_store(
    path: Path,
    shapes: dict[str, tuple[int, ...]],
    dtype: torch.dtype,
    tensors: Iterator[tuple[str, Tensor]],
    advance: Callable[[int], None] = lambda size: None,
) -> dict[str, Place]:
    """Write every tensor of `shapes` in `dtype`; `tensors` yields them in the same order.

    `advance` is told the bytes of each tensor as it is written. Returns absolute offsets.
    """
    specs = {name: TensorSpec(_DTYPES[dtype], shape) for name, shape in shapes.items()}
    places, header = layout(specs)
    with path.open("wb") as file:
        file.write(header)
        for (name, tensor), expected in zip(tensors, shapes, strict=True):
            assert name == expected, "tensors come in the order of their shapes"
            file.write(raw(tensor.to(dtype)))
            advance(places[name].length)
    return places


def layout(specs: Mapping[str, TensorSpec]) -> tuple[dict[str, Place], bytes]:
    """Where each tensor stands in a file of all of them, and what stands before the first."""
    spans: dict[str, tuple[int, int]] = {}
    offset = 0
    for name, spec in specs.items():
        spans[name] = (offset, offset + spec.nbytes)
        offset += spec.nbytes
    entries = {
        name: {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": list(spans[name]),
        }
        for name, spec in specs.items()
    }
    header = json.dumps(entries).encode()
    header += b" " * (-(8 + len(header)) % 64)  # data starts aligned, as readers that map it like
    base = 8 + len(header)
    places = {name: Place(base + begin, end - begin) for name, (begin, end) in spans.items()}
    return places, struct.pack("<Q", len(header)) + header


def raw(tensor: Tensor) -> memoryview:
    """A tensor's own bytes; those of a copy where it is no contiguous memory."""
    # In one dimension of stride 1: one expanded element is contiguous with any strides.
    line = tensor.contiguous().as_strided((tensor.numel(),), (1,))
    return line.view(torch.uint8).numpy().data
