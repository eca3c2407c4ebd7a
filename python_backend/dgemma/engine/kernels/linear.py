"""Dense products of lines and weights in every format.

Knows how programs share a product's outputs and what follows it; knows nothing of layers nor of how
a product's inner loop is done.
Shapes: M lines, N outputs, K inputs, I width.
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
from dgemma.engine.kernels.tiles import OUTPUTS, Tiles, chip_at, columns, dense_tiles
from dgemma.engine.kernels.variant import Variant
from dgemma.engine.kernels.weights import checked, scale_types, served_formats, value_types
from dgemma.geometry import Geometry
from dgemma.precision import Format

# Tiles of lines that take a tile of weights one after the other, and stay in L2 together: 2048
# lines of 2816 in bf16 are 12 MB.
_GROUP = tl.constexpr(16)


@triton.jit
def _share(M, N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The lines of a program, whether there are such, and its outputs."""
    program, across = tl.program_id(0), tl.cdiv(N, BLOCK_N)
    place = (program // across, program % across)
    row, column = tl.swizzle2d(place[0], place[1], tl.cdiv(M, BLOCK_M), across, _GROUP)
    line = row * BLOCK_M + tl.arange(0, BLOCK_M)
    return line, line < M, column * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit(do_not_specialize=["M"])
def _linear(
    x,  # [M, K]
    x_scale,  # [M]
    payload,  # [N, K]
    block_scale,
    row_scale,  # [N]
    out,  # [M, N]
    M,
    FORMAT: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    line, valid, output = _share(M, N, BLOCK_M, BLOCK_N)
    row = tl.minimum(output, N - 1)
    total, _ = products(
        x, line, valid, payload, block_scale, 0, row, row,
        False, FORMAT, K, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    total = scaled(total, row_scale, row, line_scales(x_scale, line, valid))
    store_lines(out, total, line, valid, output, N)


@triton.jit(do_not_specialize=["M"])
def _gated_linear(
    x,  # [M, K]
    x_scale,  # [M]
    payload,  # [2N, K]
    block_scale,
    row_scale,  # [2N]
    out,  # [M, N]
    M,
    FORMAT: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    line, valid, output = _share(M, N, BLOCK_M, BLOCK_N)
    row = tl.minimum(output, N - 1)
    gate, up = products(
        x, line, valid, payload, block_scale, 0, row, row + N,
        True, FORMAT, K, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    factor = line_scales(x_scale, line, valid)
    gate = scaled(gate, row_scale, row, factor)
    up = scaled(up, row_scale, row + N, factor)
    store_lines(out, gelu(gate) * up, line, valid, output, N)


def linear(x: Lines, weight: Weight) -> Tensor:
    """`x @ weight.T`, bf16 `[M, N]`.

    ValueError where lines are not in the type that the weight's format wants. In bf16 it is
    torch's, whose sums may depend on M.
    """
    checked(x, weight)
    if weight.format.name == "bf16":
        return x.values @ weight.payload.T
    return _launched(_linear, x, weight, weight.payload.shape[0], OUTPUTS)


def gated_linear(x: Lines, weight: Weight) -> Tensor:
    """`gelu(gate) * up`, bf16 `[M, I]`, of a weight `[2I, K]` that has the gate's rows first.

    ValueError where lines are not in the type that the weight's format wants.
    """
    checked(x, weight)
    return _launched(_gated_linear, x, weight, weight.payload.shape[0] // 2, OUTPUTS // 2)


def _launched(kernel: Any, x: Lines, weight: Weight, outputs: int, block_n: int) -> Tensor:
    lines, inputs = x.values.shape
    tiles = dense_tiles(lines, chip_at(x.values.device))
    out = torch.empty(lines, outputs, dtype=torch.bfloat16, device=x.values.device)
    grid = (triton.cdiv(lines, tiles.lines) * triton.cdiv(outputs, block_n),)
    kernel[grid](
        *(x.values, x.scale, weight.payload, weight.block_scale, weight.row_scale),
        *(out, lines),
        **_constants(weight.format, tiles, outputs, inputs, block_n),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return out


def _constants(
    format: Format, tiles: Tiles, outputs: int, inputs: int, block_n: int
) -> dict[str, Any]:
    return {
        "FORMAT": format.name,
        "N": outputs,
        "K": inputs,
        "BLOCK_M": tiles.lines,
        "BLOCK_N": block_n,
        "BLOCK_K": columns(format, inputs),
    }


def variants(geometry: Geometry, chip: Chip) -> Iterator[Variant]:
    """Every shape of a layer's dense matrices, in every format that the chip multiplies."""
    hidden, inner = geometry.hidden_size, geometry.intermediate_size
    gated = {(inner, hidden)}
    for kernel, shapes, block_n in (
        (_gated_linear, gated, OUTPUTS // 2),
        (_linear, _plain_shapes(geometry), OUTPUTS),
    ):
        for outputs, inputs in sorted(shapes):
            for format in served_formats(chip, (inputs,)):
                if format.name == "bf16" and kernel is _linear:
                    continue
                absent, scales = scale_types(format)
                for tiles in Tiles.dense(chip):
                    name = "gated" if kernel is _gated_linear else "plain"
                    yield Variant(
                        f"linear.{name} {format.name} {outputs}x{inputs} {tiles.lines} lines",
                        kernel,
                        {"x": value_types(format), **scales, "out": "*bf16", "M": "i32"},
                        {**absent, **_constants(format, tiles, outputs, inputs, block_n)},
                        num_warps=tiles.num_warps,
                        num_stages=tiles.num_stages,
                    )


def _plain_shapes(geometry: Geometry) -> set[tuple[int, int]]:
    """Outputs and inputs of attention's projections, of which the first three are one product, and
    of the dense feed-forward's last.
    """
    hidden, heads = geometry.hidden_size, geometry.num_attention_heads
    shapes = {(hidden, geometry.intermediate_size)}
    for layer in geometry.layers:
        groups = layer.num_key_value_heads * (1 if layer.is_full else 2)
        shapes.add(((heads + groups) * layer.head_dim, hidden))
        shapes.add((hidden, heads * layer.head_dim))
    return shapes
