"""The splits of a token's attention merged in their order, and quantised where products want it.

Knows partial means and their weights; loads neither keys nor queries.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dgemma.engine.kernels.attention_blocks import row_numbers, tile_blocks
from dgemma.engine.kernels.attention_kernel import MASKED
from dgemma.engine.kernels.operands import FP8, FP8_MOST, Lines
from dgemma.engine.kernels.rows import PassRows

LEAST_AMAX = tl.constexpr(1e-12)
MOST_FP8 = tl.constexpr(FP8_MOST)


@triton.jit
def combine_kernel(
    partial_ptr,  # [splits, R * LENGTH, HEADS, DIM]
    weight_ptr,  # fp32 [splits, R * LENGTH, HEADS]
    start_ptr,
    valid_ptr,
    denoise_ptr,
    partner_ptr,
    out_ptr,  # [R * LENGTH, HEADS * DIM]
    scale_ptr,  # fp32 [R * LENGTH], where QUANTIZE
    LENGTH: tl.constexpr,
    WINDOW: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HEADS_PADDED: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LEAST: tl.constexpr,
    MOST: tl.constexpr,
    QUANTIZE: tl.constexpr,
):
    """One token, all of its heads: their largest value is the token's scale."""
    token = tl.program_id(0)
    row = tl.program_id(1)
    start, valid, denoise, _, context_end, partner_end = row_numbers(
        row, start_ptr, valid_ptr, denoise_ptr, partner_ptr
    )
    _, _, _, _, blocks, each = tile_blocks(
        token // TOKENS * TOKENS, start, valid, denoise, context_end, partner_end,
        LENGTH, WINDOW, TOKENS, BLOCK_N, LEAST, MOST,
    )  # fmt: skip
    head = tl.arange(0, HEADS_PADDED)
    dim = tl.arange(0, DIM_PADDED)
    real = head < HEADS
    mask = real[:, None] & (dim < DIM)[None, :]
    inside = head[:, None] * DIM + dim[None, :]
    line = row.to(tl.int64) * LENGTH + token
    stride = tl.num_programs(1).to(tl.int64) * LENGTH
    top = tl.full([HEADS_PADDED], MASKED, tl.float32)
    total = tl.zeros([HEADS_PADDED], tl.float32)
    mixed = tl.zeros([HEADS_PADDED, DIM_PADDED], tl.float32)
    for split in range(tl.cdiv(blocks, tl.maximum(each, 1))):
        at = (line + split * stride) * HEADS
        weight = tl.load(weight_ptr + at + head, mask=real, other=MASKED)
        part = tl.load(partial_ptr + at * DIM + inside, mask=mask, other=0.0).to(tl.float32)
        highest = tl.maximum(top, weight)
        share = tl.exp2(weight - highest)
        keep = tl.exp2(top - highest)
        total = total * keep + share
        mixed = mixed * keep[:, None] + part * share[:, None]
        top = highest
    # A tile of padding has no splits: zeros.
    value = mixed / tl.where(total > 0, total, 1.0)[:, None]
    out = out_ptr + line * (HEADS * DIM) + inside
    if QUANTIZE:
        amax = tl.max(tl.max(tl.abs(value), 1), 0)
        scale = tl.maximum(amax, LEAST_AMAX) / MOST_FP8
        tl.store(scale_ptr + line, scale)
        value = value / scale
    tl.store(out, value.to(out_ptr.dtype.element_ty), mask=mask)


def combine(
    partial: Tensor,
    weight: Tensor,
    rows: PassRows,
    constants: dict[str, int],
    *,
    fp8: bool,
) -> Lines:
    """Lines `[R * L, H * d]` of partial means `[splits, R * L, H, d]` and their weights.

    `constants` are those that the splits were computed with.
    """
    _, tokens, heads, dim = partial.shape
    out = partial.new_empty(tokens, heads * dim, dtype=FP8 if fp8 else partial.dtype)
    scale = partial.new_empty(tokens, dtype=torch.float32) if fp8 else None
    combine_kernel[(rows.length, rows.count)](
        partial,
        weight,
        rows.start,
        rows.valid,
        rows.denoise,
        rows.partner,
        out,
        weight if scale is None else scale,
        HEADS=heads,
        HEADS_PADDED=triton.next_power_of_2(heads),
        QUANTIZE=fp8,
        **constants,
        num_warps=4,
    )
    return Lines(out, scale)
