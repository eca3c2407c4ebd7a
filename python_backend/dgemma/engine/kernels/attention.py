"""Attention of a pass's rows: keys read where they stand, in splits that a row alone decides.

Knows launches and their scratch. Per layer and row of 256 tokens (26B), at 2K of context: a
sliding layer multiplies 5.4 GFLOP and reads 8.4 MB of context; a full layer 19.3 GFLOP and 8.4 MB;
at 32K a full layer 277 GFLOP and 134 MB. Every tile of queries reads its group's keys again, from
L2: 4 tiles in a sliding layer, 32 in a full one, 128 and 64 operations per byte. Partial results
are written and read once per split: 2.1 MB each in a sliding layer, 4.2 MB in a full one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from dgemma.engine.kernels.attention_kernel import attend_kernel
from dgemma.engine.kernels.attention_tiles import Tiles
from dgemma.engine.kernels.chip import Chip
from dgemma.engine.kernels.combine import combine, combine_kernel
from dgemma.engine.kernels.operands import Lines
from dgemma.engine.kernels.rows import PassRows
from dgemma.engine.kernels.variant import Variant
from dgemma.geometry import Geometry, LayerGeometry


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pool_k: Tensor,
    pool_v: Tensor,
    rows: PassRows,
    *,
    window: int | None,
    context: int,
    tiles: Tiles,
    fp8: bool = False,
) -> Lines:
    """Lines `[R * L, H * d]`: softmax(q . k) v of `q [R * L, H, d]`, fresh k and v `[R * L, G, d]`.

    Pools are `[slots, G, W or N, d]`, rings where there is a `window`. `context` is a bound of
    every row's context, which the grid is made for and no result depends on: a row with a longer
    one gives anything. All tensors are contiguous; with `fp8` lines are e4m3, one scale for all
    heads of a token. Tokens beyond `valid` give something finite.
    """
    tokens, heads, dim = q.shape
    shape = _constants(rows.length, window, heads, k.shape[1], dim, tiles)
    splits = _most_splits(rows.length, window, context, tiles)
    partial = q.new_empty(splits, tokens, heads, dim)
    weight = q.new_empty(splits, tokens, heads, dtype=torch.float32)
    grid = (triton.cdiv(rows.length, shape["TOKENS"]), splits * k.shape[1], rows.count)
    attend_kernel[grid](
        q,
        k,
        v,
        pool_k,
        pool_v,
        rows.start,
        rows.valid,
        rows.slot,
        rows.denoise,
        rows.partner,
        partial,
        weight,
        pool_k.shape[2],
        **_of_groups(heads, k.shape[1]),
        **shape,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return combine(partial, weight, rows, shape, fp8=fp8)


def _constants(
    length: int, window: int | None, heads: int, groups: int, dim: int, tiles: Tiles
) -> dict[str, int]:
    """What both kernels are compiled for."""
    return {
        "LENGTH": length,
        "WINDOW": window or 0,
        "DIM": dim,
        "DIM_PADDED": max(16, triton.next_power_of_2(dim)),
        "TOKENS": max(1, tiles.lines // triton.next_power_of_2(heads // groups)),
        "BLOCK_N": tiles.keys,
        "LEAST": tiles.least,
        "MOST": tiles.most,
    }


def _of_groups(heads: int, groups: int) -> dict[str, int]:
    share = heads // groups
    return {"GROUPS": groups, "SHARE": share, "SHARE_PADDED": triton.next_power_of_2(share)}


def _most_splits(length: int, window: int | None, context: int, tiles: Tiles) -> int:
    """That any tile can have, with a partner and `context` tokens before it."""
    reached = min(context, window - 1) if window else context
    blocks = triton.cdiv(reached, tiles.keys) + 2 * triton.cdiv(length, tiles.keys)
    return tiles.splits(blocks)


def variants(geometry: Geometry, chip: Chip) -> Iterator[Variant]:
    """Both kernels of each kind of layer."""
    for layer in dict.fromkeys(geometry.layers):
        yield from _layer_variants(geometry, layer, chip)


def _layer_variants(geometry: Geometry, layer: LayerGeometry, chip: Chip) -> Iterator[Variant]:
    window = None if layer.is_full else geometry.sliding_window
    heads, groups = geometry.num_attention_heads, layer.num_key_value_heads
    tiles = Tiles.of(chip, layer.head_dim, window)
    shape = _constants(geometry.canvas_length, window, heads, groups, layer.head_dim, tiles)
    rows = {"start_ptr": "*i32", "valid_ptr": "*i32"}
    mode = {"denoise_ptr": "*i1", "partner_ptr": "*i32"}
    bf16 = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "pool_k_ptr", "pool_v_ptr"), "*bf16")
    scratch = {"partial_ptr": "*bf16", "weight_ptr": "*fp32"}
    yield Variant(
        f"attention.attend {layer.layer_type}",
        attend_kernel,
        {**bf16, **rows, "slot_ptr": "*i32", **mode, **scratch, "places": "i32"},
        {**shape, **_of_groups(heads, groups)},
        aligned=frozenset({"places"}),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    for fp8 in (False, True) if chip.has_fp8 else (False,):
        yield Variant(
            f"attention.combine {layer.layer_type}{' fp8' if fp8 else ''}",
            combine_kernel,
            {
                **scratch,
                **rows,
                **mode,
                "out_ptr": "*fp8e4nv" if fp8 else "*bf16",
                "scale_ptr": "*fp32",
            },
            {
                **shape,
                "HEADS": heads,
                "HEADS_PADDED": triton.next_power_of_2(heads),
                "QUANTIZE": fp8,
            },
            num_warps=4,
        )
