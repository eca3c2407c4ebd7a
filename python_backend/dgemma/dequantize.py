"""Quantised payloads and their scales back to real values, exactly.

Knows the codes of each format; knows nothing of files or of how a weight was quantised.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgemma.precision import Format

# Sign, two bits of exponent, one of mantissa: the first eight are positive (OCP Microscaling
# Formats 1.0, section 5.3.3).
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def dequantize(
    format: Format, payload: Tensor, block_scale: Tensor | None, row_scale: Tensor | None
) -> Tensor:
    """The real values `[.., N, K]` in fp32 of tensors laid out as `precision.tensors` says.

    A code times its block scale is exact in fp32; only the row scale rounds.
    """
    values = codes(format, payload)  # [.., N, K]
    if block_scale is not None:
        groups = values.unflatten(-1, (block_scale.shape[-1], -1))
        values = (groups * block_scale.float()[..., None]).flatten(-2)
    return values if row_scale is None else values * row_scale.float()


def codes(format: Format, payload: Tensor) -> Tensor:
    """What a payload holds before any scale, `[.., N, K]` in fp32."""
    if format.columns_per_byte == 1:
        return payload.float()
    nibbles = unpack(payload)
    if format.name == "int4":
        return (nibbles ^ 8).float() - 8  # two's complement
    table = torch.tensor([*E2M1, *(-value for value in E2M1)], device=payload.device)
    return table[nibbles.int()]


def unpack(payload: Tensor) -> Tensor:
    """uint8 `[.., K / 2]` -> its nibbles `[.., K]`; the even column is the low half."""
    return torch.stack([payload & 15, payload >> 4], -1).flatten(-2)
