"""What every product of weights and lines does in its inner loop.

Knows how operands meet in the matrix units; knows neither formats, experts nor what follows a
product.

Weights stand on the left: matrix units take 64 lines or more on that side and as few as 8 on the
other, and at one canvas an expert has 16 tokens. Accumulators are therefore `[BLOCK_N, BLOCK_M]`,
outputs by lines. Columns are taken in steps that depend on the format alone, so what a line gets
does not depend on the batch.

Hopper's matrix units add products of e4m3 with 13 bits of fraction or so; Triton's default there is
to leave whole sums to them, as other servers do. Adding up every 128 columns in fp32 instead
(`max_num_imprecise_acc=128`) costs a second accumulator, which spills with 128 lines.
Shapes: N outputs, K inputs of a product, M lines.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dgemma.engine.kernels.weight_tiles import NVFP4_UNIT, weight_tile


@triton.jit
def products(
    x,  # [.., K]
    line,  # [BLOCK_M]
    valid,  # [BLOCK_M]: whether this line is any
    payload,  # [.., K]
    block_scale,
    first,  # where rows are counted from
    row,  # [BLOCK_N]
    other_row,  # [BLOCK_N]
    GATED: tl.constexpr,  # whether there are other rows
    FORMAT: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """`weight[row] @ x[line].T`, and that of the other rows, without the scales of rows."""
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    other = total
    for start in range(0, K, BLOCK_K):
        lines = _line_tile(x, line, valid, start, K, BLOCK_K)
        tile = weight_tile(payload, block_scale, first, row, start, FORMAT, K, BLOCK_N, BLOCK_K)
        total = tl.dot(tile, lines, total)
        if GATED:
            tile = weight_tile(
                payload, block_scale, first, other_row, start, FORMAT, K, BLOCK_N, BLOCK_K
            )
            other = tl.dot(tile, lines, other)
    if FORMAT == "nvfp4":  # what a tile is too small by
        total, other = total * NVFP4_UNIT, other * NVFP4_UNIT
    return total, other


@triton.jit
def scaled(total, row_scale, row, line_scale):
    """`[BLOCK_N, BLOCK_M]` times the scales of its rows, where there are any, and of its lines."""
    if row_scale is not None:
        total = total * tl.load(row_scale + row)[:, None]
    return total * line_scale[None, :]


@triton.jit
def line_scales(x_scale, line, valid):
    """`[BLOCK_M]`: one where lines have no scale."""
    if x_scale is None:
        scales = valid.to(tl.float32)
    else:
        scales = tl.load(x_scale + line, mask=valid, other=0.0)
    return scales


@triton.jit
def gelu(x):
    """Tanh-approximated: x (1 + tanh u) / 2 = x sigmoid(2u)."""
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def store_lines(out, total, line, valid, output, N: tl.constexpr):
    """`[BLOCK_N, BLOCK_M]` to lines `[.., N]`."""
    total = tl.trans(total).to(out.dtype.element_ty)
    kept = valid[:, None] & (output < N)[None, :]
    tl.store(out + line[:, None] * N + output[None, :], total, mask=kept)


@triton.jit
def _line_tile(x, line, valid, start, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """`[BLOCK_K, BLOCK_M]`; lines that are not valid are zero and are not read."""
    column = start + tl.arange(0, BLOCK_K)
    held = valid[None, :]
    if K % BLOCK_K != 0:
        held = held & (column < K)[:, None]
    return tl.load(x + line[None, :] * K + column[:, None], mask=held, other=0.0)
