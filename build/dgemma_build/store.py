"""The weight store: one safetensors file of an engine, written tensor by tensor.

Knows the file format, so that neither the file nor the checkpoint is ever whole in memory and an
ONNX graph can point into it; knows nothing of precisions.
Format: https://huggingface.co/docs/safetensors (8 bytes of header length, JSON header, raw data).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

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
    places, header = _layout(shapes, dtype)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for (name, tensor), expected in zip(tensors, shapes, strict=True):
            assert name == expected, "tensors come in the order of their shapes"
            data = tensor.to(dtype).contiguous()
            file.write(data.view(torch.uint8).numpy().reshape(-1).data)
            advance(places[name].length)
    return places


def _layout(
    shapes: dict[str, tuple[int, ...]], dtype: torch.dtype
) -> tuple[dict[str, Place], bytes]:
    spans: dict[str, tuple[int, int]] = {}
    offset = 0
    for name, shape in shapes.items():
        length = torch.Size(shape).numel() * dtype.itemsize
        spans[name] = (offset, offset + length)
        offset += length
    entries = {
        name: {"dtype": _DTYPES[dtype], "shape": list(shapes[name]), "data_offsets": list(span)}
        for name, span in spans.items()
    }
    header = json.dumps(entries).encode()
    header += b" " * (-(8 + len(header)) % 64)  # data starts aligned, as readers that map it like
    base = 8 + len(header)
    return {name: Place(base + begin, end - begin) for name, (begin, end) in spans.items()}, header
