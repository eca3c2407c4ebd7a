"""Heads of a pass's tokens out of their projection: normed, and rotated to where they stand.

Knows positions and head sizes; knows neither weights of projections nor masks. Angles are worked
out once per pass and kind of layer: a position of 262144 needs a full range reduction, which is
some hundred instructions, while the table that 25 layers read stays in L2 (0.26 MB per row and
sliding layer, beside 4.2 MB of lines that are read and 4.2 MB that are written).
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
def rotary_kernel(
    start_ptr,
    frequency_ptr,  # fp32 [HALF]
    table_ptr,  # fp32 [2, R * LENGTH, HALF]
    LENGTH: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    TOKENS: tl.constexpr,
):
    row = tl.program_id(1)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    pair = tl.arange(0, HALF_PADDED)
    mask = (token < LENGTH)[:, None] & (pair < HALF)[None, :]
    frequency = tl.load(frequency_ptr + pair, mask=pair < HALF, other=0.0)
    position = (tl.load(start_ptr + row) + token).to(tl.float32)
    angle = position[:, None] * frequency[None, :]
    at = (row * LENGTH + token)[:, None] * HALF + pair[None, :]
    lines = tl.num_programs(1) * LENGTH
    tl.store(table_ptr + at, tl.cos(angle), mask=mask)
    tl.store(table_ptr + lines * HALF + at, tl.sin(angle), mask=mask)


@triton.jit
def heads_kernel(
    lines_ptr,  # [M, (HEADS + GROUPS or 2 * GROUPS) * DIM]
    table_ptr,  # fp32 [2, M, DIM / 2]
    q_weight_ptr,  # [DIM]
    k_weight_ptr,
    q_ptr,  # [M, HEADS, DIM]
    k_ptr,  # [M, GROUPS, DIM]
    v_ptr,
    lines,  # M
    EPS: tl.constexpr,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    DIM: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    HAS_V: tl.constexpr,  # without a projection of their own, values are the unscaled keys
    TOKENS: tl.constexpr,
):
    """One head of some tokens, as the two halves that are rotated against each other."""
    HALF: tl.constexpr = DIM // 2
    WIDTH: tl.constexpr = (HEADS + (2 if HAS_V else 1) * GROUPS) * DIM
    head = tl.program_id(1)
    line = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    pair = tl.arange(0, HALF_PADDED)
    real = pair < HALF
    mask = (line < lines)[:, None] & real[None, :]
    source = lines_ptr + line.to(tl.int64)[:, None] * WIDTH + head * DIM + pair[None, :]
    first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=mask, other=0.0).to(tl.float32)
    square = (tl.sum(first * first, 1) + tl.sum(second * second, 1)) / DIM
    norm = tl.rsqrt(square + EPS)[:, None]
    first = first * norm
    second = second * norm
    group = head - HEADS
    if head >= HEADS:
        is_v = head >= HEADS + GROUPS
        if is_v or not HAS_V:
            at = (line[:, None] * GROUPS + group - (GROUPS if HAS_V else 0)) * DIM + pair[None, :]
            tl.store(v_ptr + at, first.to(v_ptr.dtype.element_ty), mask=mask)
            tl.store(v_ptr + at + HALF, second.to(v_ptr.dtype.element_ty), mask=mask)
        if is_v:
            return
    weight_ptr = tl.where(head < HEADS, q_weight_ptr, k_weight_ptr)
    first = first * tl.load(weight_ptr + pair, mask=real, other=0.0).to(tl.float32)[None, :]
    second = (
        second * tl.load(weight_ptr + HALF + pair, mask=real, other=0.0).to(tl.float32)[None, :]
    )
    place = line[:, None] * HALF + pair[None, :]
    cos = tl.load(table_ptr + place, mask=mask, other=0.0)
    sin = tl.load(table_ptr + lines * HALF + place, mask=mask, other=0.0)
    out = tl.where(head < HEADS, q_ptr, k_ptr)
    inside = line * tl.where(head < HEADS, HEADS, GROUPS) + tl.where(head < HEADS, head, group)
    target = out + inside.to(tl.int64)[:, None] * DIM + pair[None, :]
    tl.store(target, (first * cos - second * sin).to(q_ptr.dtype.element_ty), mask=mask)
    tl.store(target + HALF, (second * cos + first * sin).to(q_ptr.dtype.element_ty), mask=mask)


def rotary_table(rows: PassRows, frequencies: Tensor) -> Tensor:
    """cos and sin of every token's angles, fp32 `[2, R * L, d / 2]`; frequencies fp32 `[d / 2]`."""
    half = frequencies.shape[0]
    table = frequencies.new_empty(2, rows.count * rows.length, half)
    rotary_kernel[(triton.cdiv(rows.length, TOKENS), rows.count)](
        rows.start,
        frequencies,
        table,
        LENGTH=rows.length,
        HALF=half,
        HALF_PADDED=triton.next_power_of_2(half),
        TOKENS=TOKENS,
        num_warps=4,
    )
    return table


def normed_heads(
    lines: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    table: Tensor,
    *,
    heads: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """q `[M, H, d]`, k and v `[M, G, d]` of the projection `[M, (H + 2 G) * d]` of M tokens.

    A projection `[M, (H + G) * d]` has no values of its own: they are its keys, normed without a
    weight. `table` is what `rotary_table` gives. All tensors are contiguous.
    """
    tokens, width = lines.shape
    dim = q_weight.shape[0]
    q = lines.new_empty(tokens, heads, dim)
    k, v = lines.new_empty(2, tokens, groups, dim)
    heads_kernel[(triton.cdiv(tokens, TOKENS), width // dim)](
        lines,
        table,
        q_weight,
        k_weight,
        q,
        k,
        v,
        tokens,
        **_constants(heads, groups, dim, eps, has_v=width == (heads + 2 * groups) * dim),
        num_warps=4,
    )
    return q, k, v


def _constants(
    heads: int, groups: int, dim: int, eps: float, *, has_v: bool
) -> dict[str, int | float]:
    return {
        "EPS": eps,
        "HEADS": heads,
        "GROUPS": groups,
        "DIM": dim,
        "HALF_PADDED": triton.next_power_of_2(dim // 2),
        "HAS_V": has_v,
        "TOKENS": TOKENS,
    }


def variants(geometry: Geometry, chip: Chip) -> Iterator[Variant]:
    """Both kernels of each kind of layer; the same on every chip."""
    del chip
    for layer in dict.fromkeys(geometry.layers):
        yield from _layer_variants(geometry, layer)


def _layer_variants(geometry: Geometry, layer: LayerGeometry) -> Iterator[Variant]:
    half = layer.head_dim // 2
    yield Variant(
        f"heads.rotary {layer.layer_type}",
        rotary_kernel,
        {"start_ptr": "*i32", "frequency_ptr": "*fp32", "table_ptr": "*fp32"},
        {
            "LENGTH": geometry.canvas_length,
            "HALF": half,
            "HALF_PADDED": triton.next_power_of_2(half),
            "TOKENS": TOKENS,
        },
        num_warps=4,
        hot=False,
    )
    arrays = ("q_weight_ptr", "k_weight_ptr", "q_ptr", "k_ptr", "v_ptr")
    yield Variant(
        f"heads.normed {layer.layer_type}",
        heads_kernel,
        {
            "lines_ptr": "*bf16",
            "table_ptr": "*fp32",
            **dict.fromkeys(arrays, "*bf16"),
            "lines": "i32",
        },
        _constants(
            geometry.num_attention_heads,
            layer.num_key_value_heads,
            layer.head_dim,
            geometry.rms_norm_eps,
            has_v=not layer.is_full,
        ),
        aligned=frozenset({"lines"}),
        num_warps=4,
    )
