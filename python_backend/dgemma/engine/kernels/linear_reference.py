"""Dense products in plain torch: what `linear` computes, and what runs on CPUs.

Knows what weights and lines stand for; knows nothing of kernels.
Shapes: M lines, N outputs, K inputs, I width.
"""

from __future__ import annotations

from torch import Tensor

from dgemma.dequantize import dequantize
from dgemma.engine.kernels.operands import Lines, Weight
from dgemma.model.layers import gelu


def linear(x: Lines, weight: Weight) -> Tensor:
    """`x @ weight.T`, `[M, N]`."""
    return rounded(real_lines(x) @ real_weight(weight).T, x)


def gated_linear(x: Lines, weight: Weight) -> Tensor:
    """`gelu(gate) * up`, `[M, I]`, of a weight `[2I, K]` that has the gate's rows first."""
    gate, up = (real_lines(x) @ real_weight(weight).T).chunk(2, -1)
    return rounded(gelu(gate) * up, x)


def real_lines(x: Lines) -> Tensor:
    """In fp32."""
    return x.values.float() if x.scale is None else x.values.float() * x.scale[:, None]


def real_weight(weight: Weight) -> Tensor:
    """In fp32."""
    return dequantize(weight.format, weight.payload, weight.block_scale, weight.row_scale)


def rounded(out: Tensor, x: Lines) -> Tensor:
    """To bf16, but for lines in fp32: those are fp32 all through."""
    return out.to(x.dtype)
