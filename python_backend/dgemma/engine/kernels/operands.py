"""What products multiply: weights as stores hold them, activations as their format wants them.

Knows payloads and scales; computes nothing.
Shapes: N outputs, K inputs of a product, M lines.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dgemma.precision import Format

FP8 = torch.float8_e4m3fn
FP8_MOST = 448.0  # the largest e4m3


@dataclass(frozen=True)
class Weight:
    """`[.., N, K]` in one of `precision.FORMATS`: value = payload * block scale * row scale."""

    format: Format
    payload: Tensor  # [.., N, K / columns_per_byte], K adjacent
    block_scale: Tensor | None = None  # [.., N, K / group_size]
    row_scale: Tensor | None = None  # fp32 [.., N, 1]


@dataclass(frozen=True)
class Lines:
    """Activations `[M, K]`: bf16, or e4m3 with one scale per line; fp32 only in plain torch."""

    values: Tensor
    scale: Tensor | None = None  # fp32 [M]; value = values * scale
    rounded_from: torch.dtype = torch.bfloat16  # what e4m3 was before

    @property
    def dtype(self) -> torch.dtype:
        """Of products with it."""
        return self.values.dtype if self.scale is None else self.rounded_from
