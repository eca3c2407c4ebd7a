"""What a pass leaves in the pools: keys and values of its encode rows.

Knows the layout of pools; knows nothing of attention but that it reads what stands there before.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from dgemma.engine.kernels.chip import Chip
from dgemma.engine.kernels.rows import PassRows
from dgemma.engine.kernels.variant import Variant
from dgemma.geometry import Geometry, LayerGeometry

TOKENS = 8  # of a program


@triton.jit
def keep_kernel(
    k_ptr,  # [R * LENGTH, GROUPS, DIM]
    v_ptr,
    pool_k_ptr,  # [slots, GROUPS, places, DIM]
    pool_v_ptr,
    start_ptr,
    valid_ptr,
    slot_ptr,
    denoise_ptr,
    places,  # W or N
    LENGTH: tl.constexpr,
    WINDOW: tl.constexpr,  # 0: a full layer
    GROUPS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    TOKENS: tl.constexpr,
):
    row = tl.program_id(2)
    if tl.load(denoise_ptr + row) != 0:
        return
    group = tl.program_id(1)
    valid = tl.load(valid_ptr + row)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    held = tl.load(start_ptr + row) + token
    kept = token < valid
    if WINDOW > 0:
        held = held % WINDOW
        # Of a row longer than the window only the last W tokens have a place.
        kept = kept & (token >= valid - WINDOW)
    dim = tl.arange(0, DIM_PADDED)
    mask = kept[:, None] & (dim < DIM)[None, :]
    line = row.to(tl.int64) * LENGTH + token
    source = (line * GROUPS + group)[:, None] * DIM + dim[None, :]
    block = (tl.load(slot_ptr + row).to(tl.int64) * GROUPS + group) * places
    target = (block + held)[:, None] * DIM + dim[None, :]
    tl.store(pool_k_ptr + target, tl.load(k_ptr + source, mask=mask), mask=mask)
    tl.store(pool_v_ptr + target, tl.load(v_ptr + source, mask=mask), mask=mask)


def keep(
    k: Tensor, v: Tensor, pool_k: Tensor, pool_v: Tensor, rows: PassRows, *, window: int | None
) -> None:
    """Write fresh k and v `[R * L, G, d]` of the encode rows to their slots' pools, in place.

    Run it after the layer's attention, which still reads what a ring held before. Two encode rows
    of a slot may be in one pass as long as both fit into a ring. All tensors are contiguous.
    """
    _, groups, dim = k.shape
    keep_kernel[(triton.cdiv(rows.length, TOKENS), groups, rows.count)](
        k,
        v,
        pool_k,
        pool_v,
        rows.start,
        rows.valid,
        rows.slot,
        rows.denoise,
        pool_k.shape[2],
        **_constants(rows.length, window, groups, dim),
        num_warps=4,
    )


def _constants(length: int, window: int | None, groups: int, dim: int) -> dict[str, int]:
    return {
        "LENGTH": length,
        "WINDOW": window or 0,
        "GROUPS": groups,
        "DIM": dim,
        "DIM_PADDED": triton.next_power_of_2(dim),
        "TOKENS": TOKENS,
    }


def variants(geometry: Geometry, chip: Chip) -> Iterator[Variant]:
    """One kernel for each kind of layer; the same on every chip."""
    del chip
    for layer in dict.fromkeys(geometry.layers):
        yield _layer_variant(geometry, layer)


def _layer_variant(geometry: Geometry, layer: LayerGeometry) -> Variant:
    window = None if layer.is_full else geometry.sliding_window
    groups, dim = layer.num_key_value_heads, layer.head_dim
    arrays = dict.fromkeys(("k_ptr", "v_ptr", "pool_k_ptr", "pool_v_ptr"), "*bf16")
    numbers = dict.fromkeys(("start_ptr", "valid_ptr", "slot_ptr"), "*i32")
    return Variant(
        f"keep {layer.layer_type}",
        keep_kernel,
        {**arrays, **numbers, "denoise_ptr": "*i1", "places": "i32"},
        _constants(geometry.canvas_length, window, groups, dim),
        aligned=frozenset({"places"}),
        num_warps=4,
    )
