"""Which keys the queries of a tile see, as blocks, and how the blocks are split over programs.

Knows positions, modes and partners; loads no key. The keys of a tile are three runs of positions,
each cut into blocks from its own beginning: the context in the slot's pool, the partner's tokens
and the row's own. A run begins at the first position that any query of the tile sees, so that the
one rectangle of a canvas on a sliding layer needs no mask but at the ends of runs.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_numbers(row, start_ptr, valid_ptr, denoise_ptr, partner_ptr):
    """Where a row stands: start, real tokens, mode, partner (or -1), and where the context that
    is in the pool and the partner's tokens end."""
    start = tl.load(start_ptr + row)
    valid = tl.load(valid_ptr + row)
    denoise = tl.load(denoise_ptr + row) != 0
    partner = tl.load(partner_ptr + row)
    context_end = start
    partner_end = start
    if partner >= 0:
        context_end = tl.load(start_ptr + partner)
        partner_end = context_end + tl.load(valid_ptr + partner)
    return start, valid, denoise, partner, context_end, partner_end


@triton.jit
def tile_blocks(
    token,
    start,
    valid,
    denoise,
    context_end,
    partner_end,
    LENGTH: tl.constexpr,
    WINDOW: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LEAST: tl.constexpr,
    MOST: tl.constexpr,
):
    """Of the tile of TOKENS queries from `token` on: first position seen, end of its own keys,
    blocks of context, of the partner's and in all, and blocks of each split.

    The numbers of the row alone decide, never its neighbours or the bound of the launch. Splits
    are equally long: at least LEAST blocks where there are as many, and at most MOST of them,
    which bounds the partial results of a long context.
    """
    low = token * 0
    if WINDOW > 0:
        low = tl.maximum(start + tl.where(denoise, 0, token) - (WINDOW - 1), 0)
    own_end = start + tl.where(denoise, LENGTH, tl.minimum(token + TOKENS, LENGTH))
    context = tl.cdiv(tl.maximum(context_end - low, 0), BLOCK_N)
    partner = tl.cdiv(tl.maximum(partner_end - tl.maximum(context_end, low), 0), BLOCK_N)
    own = tl.cdiv(own_end - tl.maximum(start, low), BLOCK_N)
    blocks = context + partner + own
    blocks = tl.where(token < valid, blocks, 0)  # nobody reads what padded queries give
    splits = tl.minimum(tl.maximum(blocks // LEAST, 1), MOST)
    return low, own_end, context, context + partner, blocks, tl.cdiv(blocks, splits)
