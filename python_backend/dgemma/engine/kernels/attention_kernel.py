"""Attention of a tile of queries over one split of its keys.

Knows positions, pools and fresh K/V; knows nothing of how splits are merged. The heads that share
K/V stand under one another in a tile, so that each key is read once for all of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dgemma.engine.kernels.attention_blocks import row_numbers, tile_blocks

LOG2_E = tl.constexpr(1.4426950408889634)
# Finite, so that a line without a key is a mean of anything, never NaN; it weighs exp2(MASKED) = 0
# as soon as the line sees one, in this split or another.
MASKED = tl.constexpr(-1.0e30)


@triton.jit
def attend_kernel(
    q_ptr,  # [R * LENGTH, GROUPS * SHARE, DIM]
    k_ptr,  # [R * LENGTH, GROUPS, DIM]
    v_ptr,
    pool_k_ptr,  # [slots, GROUPS, places, DIM]
    pool_v_ptr,
    start_ptr,  # [R], as the four below
    valid_ptr,
    slot_ptr,
    denoise_ptr,
    partner_ptr,
    partial_ptr,  # [splits, R * LENGTH, GROUPS * SHARE, DIM]: means of V
    weight_ptr,  # fp32 [splits, R * LENGTH, GROUPS * SHARE]: log2 of the sum of exponentials
    places,  # W or N
    LENGTH: tl.constexpr,
    WINDOW: tl.constexpr,  # 0: a full layer
    GROUPS: tl.constexpr,
    SHARE: tl.constexpr,  # query heads of a group
    DIM: tl.constexpr,
    SHARE_PADDED: tl.constexpr,  # powers of two
    DIM_PADDED: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LEAST: tl.constexpr,
    MOST: tl.constexpr,
):
    HEADS: tl.constexpr = GROUPS * SHARE
    LINES: tl.constexpr = TOKENS * SHARE_PADDED
    # Every tile is full: nothing to mask but keys.
    WHOLE: tl.constexpr = LENGTH % TOKENS == 0 and SHARE == SHARE_PADDED and DIM == DIM_PADDED
    token = tl.program_id(0) * TOKENS
    group = tl.program_id(1) % GROUPS
    split = tl.program_id(1) // GROUPS
    row = tl.program_id(2)
    slot = tl.load(slot_ptr + row).to(tl.int64)
    start, valid, denoise, partner, context_end, partner_end = row_numbers(
        row, start_ptr, valid_ptr, denoise_ptr, partner_ptr
    )
    low, own_end, context_blocks, fresh_blocks, blocks, each = tile_blocks(
        token, start, valid, denoise, context_end, partner_end,
        LENGTH, WINDOW, TOKENS, BLOCK_N, LEAST, MOST,
    )  # fmt: skip
    first_block = split * each
    if first_block >= blocks:
        return

    line = tl.arange(0, LINES)
    own = token + line // SHARE_PADDED  # token of the row
    dim = tl.arange(0, DIM_PADDED)
    real = (own < LENGTH) & (line % SHARE_PADDED < SHARE)
    real_dim = dim < DIM
    # From the tile's first token and head on; what comes before it can be beyond 31 bits.
    inside = line // SHARE_PADDED * HEADS + line % SHARE_PADDED
    before_tile = (row.to(tl.int64) * LENGTH + token) * HEADS + group * SHARE
    q_mask = real[:, None] & real_dim[None, :]
    q_place = inside[:, None] * DIM + dim[None, :]
    if WHOLE:
        q = tl.load(q_ptr + before_tile * DIM + q_place)
    else:
        q = tl.load(q_ptr + before_tile * DIM + q_place, mask=q_mask, other=0.0)

    # What a query of this tile sees: a canvas all of its rectangle, a prompt what is not after it.
    upper = tl.where(denoise, own_end - 1, start + own)
    lower = upper * 0 + low
    upper_of_all = tl.where(denoise, own_end - 1, start + token)
    lower_of_all = low
    if WINDOW > 0:
        lower = tl.where(denoise, low, start + own - (WINDOW - 1))
        lower_of_all = tl.where(denoise, low, own_end - WINDOW)

    pool_base = (slot * GROUPS + group) * places * DIM
    own_base = (row.to(tl.int64) * LENGTH * GROUPS + group) * DIM
    partner_base = (tl.maximum(partner, 0).to(tl.int64) * LENGTH * GROUPS + group) * DIM
    step = tl.arange(0, BLOCK_N)
    top = tl.full([LINES], MASKED, tl.float32)
    total = tl.zeros([LINES], tl.float32)
    mixed = tl.zeros([LINES, DIM_PADDED], tl.float32)
    for block in range(first_block, tl.minimum(first_block + each, blocks)):
        in_pool = block < context_blocks
        is_own = block >= fresh_blocks
        before = tl.where(in_pool, 0, tl.where(is_own, fresh_blocks, context_blocks))
        fresh_start = tl.where(is_own, start, context_end)
        run_start = tl.where(in_pool, low, tl.maximum(fresh_start, low))
        run_end = tl.where(in_pool, context_end, tl.where(is_own, own_end, partner_end))
        first = run_start + (block - before) * BLOCK_N
        position = first + step
        # Beyond the run its last key is repeated, which costs nothing to load and is finite: what
        # a pool holds beyond the context may be anything.
        nearest = tl.minimum(position, run_end - 1)
        held = nearest
        if WINDOW > 0:
            held = nearest % WINDOW
        offset = tl.where(in_pool, held * DIM, (nearest - fresh_start) * (GROUPS * DIM))
        fresh_base = tl.where(is_own, own_base, partner_base)
        k_block = tl.where(in_pool, pool_k_ptr + pool_base, k_ptr + fresh_base)
        v_block = tl.where(in_pool, pool_v_ptr + pool_base, v_ptr + fresh_base)
        offset = offset[:, None] + dim[None, :]
        if DIM == DIM_PADDED:
            k = tl.load(k_block + offset)
            v = tl.load(v_block + offset)
        else:
            k = tl.load(k_block + offset, mask=real_dim[None, :], other=0.0)
            v = tl.load(v_block + offset, mask=real_dim[None, :], other=0.0)

        score = tl.dot(q, tl.trans(k)) * LOG2_E
        last = first + BLOCK_N - 1
        if (last >= run_end) | (last > upper_of_all) | (first < lower_of_all):
            seen = (position[None, :] <= upper[:, None]) & (position[None, :] >= lower[:, None])
            score = tl.where(seen & (position < run_end)[None, :], score, MASKED)
        highest = tl.maximum(top, tl.max(score, 1))
        share = tl.exp2(score - highest[:, None])
        keep = tl.exp2(top - highest)
        total = total * keep + tl.sum(share, 1)
        mixed = tl.dot(share.to(v.dtype), v, mixed * keep[:, None])
        top = highest

    before_tile += split.to(tl.int64) * tl.num_programs(2) * LENGTH * HEADS
    mean = (mixed / total[:, None]).to(partial_ptr.dtype.element_ty)
    weight = top + tl.log2(total)
    if WHOLE:
        tl.store(partial_ptr + before_tile * DIM + q_place, mean)
        tl.store(weight_ptr + before_tile + inside, weight)
    else:
        tl.store(partial_ptr + before_tile * DIM + q_place, mean, mask=q_mask)
        tl.store(weight_ptr + before_tile + inside, weight, mask=real)
