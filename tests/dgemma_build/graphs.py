"""Graphs of the small geometry, emitted once however many tests change a copy of theirs."""

from __future__ import annotations

from functools import cache

import onnx
import torch

from dgemma.precision import policy_of
from dgemma_build.precision_pass import apply_precision
from tests.dgemma_build.quantized import whole_groups
from tests.shared import emitted

GEOMETRY = whole_groups()


@cache
def _emitted(dtype: torch.dtype) -> bytes:
    return emitted(GEOMETRY, dtype).SerializeToString()


def graph(dtype: torch.dtype = torch.float32) -> onnx.ModelProto:
    """The graph of `GEOMETRY`; the caller's own."""
    return onnx.ModelProto.FromString(_emitted(dtype))


def quantized_graph(
    precision: str, policy: str | None = None, dtype: torch.dtype = torch.bfloat16
) -> onnx.ModelProto:
    model = graph(dtype)
    apply_precision(model, policy_of(precision, policy))
    return model
