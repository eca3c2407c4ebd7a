"""The experts' products in plain torch: what `experts` computes, and what runs on CPUs.

Knows what weights and lines stand for; knows nothing of kernels.
Shapes: T tokens, k experts per token, E experts, D hidden size, I expert width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgemma.engine.kernels.linear_reference import gated_linear, real_lines, real_weight, rounded
from dgemma.engine.kernels.operands import Lines, Weight
from dgemma.engine.kernels.routed import Routed


def gate_up(x: Lines, weight: Weight, routed: Routed) -> Tensor:
    """`gelu(gate) * up` `[T * k, I]` of tokens `[T, D]` and a weight `[E, 2I, D]`, gate first."""
    tokens = routed.order.long() // routed.weights.shape[1]
    lines = real_lines(x)[tokens]  # [T * k, D]
    parts = [
        gated_linear(Lines(part), one)
        for part, one in zip(_parts(lines, routed), _experts(weight), strict=True)
    ]
    return rounded(torch.cat(parts), x)


def down(inner: Lines, weight: Weight, routed: Routed) -> Tensor:
    """Each expert's share `[T, k, D]` from `[T * k, I]` in `routed.order`, weight `[E, D, I]`."""
    parts = [
        part @ real_weight(one).T
        for part, one in zip(_parts(real_lines(inner), routed), _experts(weight), strict=True)
    ]
    order = routed.order.long()
    lines = torch.cat(parts) * routed.weights.flatten()[order, None]
    out = torch.empty_like(lines).index_copy_(0, order, lines)
    return rounded(out, inner).view(*routed.weights.shape, -1)


def _parts(lines: Tensor, routed: Routed) -> tuple[Tensor, ...]:
    """The lines of each expert."""
    parts: tuple[Tensor, ...] = lines.split(routed.offsets.diff().tolist())
    return parts


def _experts(weight: Weight) -> list[Weight]:
    """A bank's weights one by one, so that only one is dequantised at a time."""
    scales = (weight.block_scale, weight.row_scale)
    return [
        Weight(weight.format, payload, *(None if s is None else s[index] for s in scales))
        for index, payload in enumerate(weight.payload)
    ]
