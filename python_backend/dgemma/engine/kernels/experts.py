"""The experts' products over lines that are sorted by expert, in every format of weights.

Knows how programs find their expert and lines on the device, and what follows each product; knows
neither how tokens were routed nor how a product's inner loop is done.

Programs of an expert are adjacent, and of those the ones that share a tile of weights: what the
first reads from memory, the others find in L2.
Shapes: T tokens, k experts per token, E experts, D hidden size, I expert width; N outputs, K inputs
of a product.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dgemma.engine.kernels.chip import Chip
from dgemma.engine.kernels.operands import Lines, Weight
from dgemma.engine.kernels.products import gelu, line_scales, products, scaled, store_lines
from dgemma.engine.kernels.routed import Routed
from dgemma.engine.kernels.tiles import (
    OUTPUTS,
    Tiles,
    chip_at,
    columns,
    expert_tiles,
    served_expert_tiles,
)
from dgemma.engine.kernels.variant import Variant
from dgemma.engine.kernels.weights import checked, scale_types, served_formats, value_types
from dgemma.geometry import Geometry
from dgemma.precision import Format


@triton.jit
def _place(
    offsets,  # [E + 1]
    E: tl.constexpr,
    PADDED_E: tl.constexpr,
    N_TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """A program's expert, at least E where it has nothing to do, and its place among that one's."""
    program = tl.program_id(0)
    expert = tl.arange(0, PADDED_E)
    begin = tl.load(offsets + expert, mask=expert < E, other=0)
    end = tl.load(offsets + expert + 1, mask=expert < E, other=0)
    behind = tl.cumsum(tl.cdiv(end - begin, BLOCK_M) * N_TILES, 0)  # the first program of the next
    passed = behind <= program
    return tl.sum(passed.to(tl.int32), 0), program - tl.max(tl.where(passed, behind, 0), 0)


@triton.jit
def _share(offsets, expert, place, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The lines of `order` that a program has, whether they are its expert's, and its outputs."""
    begin = tl.load(offsets + expert)
    end = tl.load(offsets + expert + 1)
    tiles = tl.cdiv(end - begin, BLOCK_M)
    line = begin + place % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    return line, line < end, place // tiles * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit
def _gate_up(
    x,  # [T, K]
    x_scale,  # [T]
    payload,  # [E, 2N, K]
    block_scale,
    row_scale,  # [E, 2N]
    order,  # [T * k]
    offsets,  # [E + 1]
    out,  # [T * k, N]
    TOP_K: tl.constexpr,
    FORMAT: tl.constexpr,
    E: tl.constexpr,
    PADDED_E: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    expert, place = _place(offsets, E, PADDED_E, tl.cdiv(N, BLOCK_N), BLOCK_M)
    if expert >= E:
        return
    line, valid, output = _share(offsets, expert, place, BLOCK_M, BLOCK_N)
    token = tl.load(order + line, mask=valid, other=0) // TOP_K
    first, row = expert.to(tl.int64) * (2 * N), tl.minimum(output, N - 1)
    gate, up = products(
        x, token, valid, payload, block_scale, first, row, row + N,
        True, FORMAT, K, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    factor = line_scales(x_scale, token, valid)
    gate = scaled(gate, row_scale, first + row, factor)
    up = scaled(up, row_scale, first + N + row, factor)
    store_lines(out, gelu(gate) * up, line, valid, output, N)


@triton.jit
def _down(
    x,  # [T * k, K]
    x_scale,  # [T * k]
    payload,  # [E, N, K]
    block_scale,
    row_scale,  # [E, N]
    weights,  # [T * k]
    order,  # [T * k]
    offsets,  # [E + 1]
    out,  # [T * k, N]
    FORMAT: tl.constexpr,
    E: tl.constexpr,
    PADDED_E: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    expert, place = _place(offsets, E, PADDED_E, tl.cdiv(N, BLOCK_N), BLOCK_M)
    if expert >= E:
        return
    line, valid, output = _share(offsets, expert, place, BLOCK_M, BLOCK_N)
    first, row = expert.to(tl.int64) * N, tl.minimum(output, N - 1)
    total, _ = products(
        x, line, valid, payload, block_scale, first, row, row,
        False, FORMAT, K, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    assignment = tl.load(order + line, mask=valid, other=0)
    factor = line_scales(x_scale, line, valid) * tl.load(weights + assignment, valid, other=0.0)
    total = scaled(total, row_scale, first + row, factor)
    store_lines(out, total, assignment, valid, output, N)


def gate_up(x: Lines, weight: Weight, routed: Routed) -> Tensor:
    """`gelu(gate) * up` of every assignment, bf16 `[T * k, I]` in the order of `routed.order`.

    `x` are tokens `[T, D]`, the weight is `[E, 2I, D]`, the gate's rows first. ValueError where
    lines are not in the type that the weight's format wants.
    """
    checked(x, weight)
    num_experts, rows, _ = weight.payload.shape
    inner, inputs = rows // 2, x.values.shape[1]
    assignments = routed.order.shape[0]
    chip = chip_at(x.values.device)
    tiles = expert_tiles(assignments, num_experts, chip)
    out = torch.empty(assignments, inner, dtype=torch.bfloat16, device=x.values.device)
    constants = _constants(weight.format, tiles, num_experts, inner, inputs, OUTPUTS // 2)
    _gate_up[_grid(constants, assignments)](
        *(x.values, x.scale, weight.payload, weight.block_scale, weight.row_scale),
        *(routed.order, routed.offsets, out),
        TOP_K=routed.weights.shape[1],
        **constants,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return out


def down(inner: Lines, weight: Weight, routed: Routed) -> Tensor:
    """What each expert makes of its tokens, times its weight in them, bf16 `[T, k, D]`.

    `inner` is `[T * k, I]` in the order of `routed.order`, the weight is `[E, D, I]`. ValueError
    where lines are not in the type that the weight's format wants.
    """
    checked(inner, weight)
    num_experts, outputs, _ = weight.payload.shape
    assignments, inputs = inner.values.shape
    chip = chip_at(inner.values.device)
    tiles = expert_tiles(assignments, num_experts, chip)
    shape = (*routed.weights.shape, outputs)
    out = torch.empty(shape, dtype=torch.bfloat16, device=inner.values.device)
    constants = _constants(weight.format, tiles, num_experts, outputs, inputs, OUTPUTS)
    _down[_grid(constants, assignments)](
        *(inner.values, inner.scale, weight.payload, weight.block_scale, weight.row_scale),
        *(routed.weights, routed.order, routed.offsets, out),
        **constants,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return out


def _constants(
    format: Format, tiles: Tiles, num_experts: int, outputs: int, inputs: int, block_n: int
) -> dict[str, Any]:
    return {
        "FORMAT": format.name,
        "E": num_experts,
        "PADDED_E": triton.next_power_of_2(num_experts),
        "N": outputs,
        "K": inputs,
        "BLOCK_M": tiles.lines,
        "BLOCK_N": block_n,
        "BLOCK_K": columns(format, inputs),
    }


def _grid(constants: dict[str, Any], assignments: int) -> tuple[int]:
    """As many programs as any routing needs: each expert may leave one tile nearly empty."""
    tiles = triton.cdiv(assignments, constants["BLOCK_M"]) + constants["E"]
    return (tiles * triton.cdiv(constants["N"], constants["BLOCK_N"]),)


def variants(geometry: Geometry, chip: Chip) -> Iterator[Variant]:
    """Both products in every format that the chip multiplies, for each size of tile."""
    experts, hidden = geometry.num_experts, geometry.hidden_size
    inner = geometry.moe_intermediate_size
    routed = {"order": "*i32", "offsets": "*i32", "out": "*bf16"}
    for format in served_formats(chip, (hidden, inner)):
        values = {"x": value_types(format)}
        absent, scales = scale_types(format)
        for tiles in served_expert_tiles(geometry, chip):
            name = f"{format.name} {tiles.lines} lines"
            up = _constants(format, tiles, experts, inner, hidden, OUTPUTS // 2)
            yield Variant(
                f"experts.gate_up {name}",
                _gate_up,
                {**values, **scales, **routed},
                {**absent, **up, "TOP_K": geometry.top_k_experts},
                num_warps=tiles.num_warps,
                num_stages=tiles.num_stages,
            )
            yield Variant(
                f"experts.down {name}",
                _down,
                {**values, **scales, "weights": "*fp32", **routed},
                {**absent, **_constants(format, tiles, experts, hidden, inner, OUTPUTS)},
                num_warps=tiles.num_warps,
                num_stages=tiles.num_stages,
            )
