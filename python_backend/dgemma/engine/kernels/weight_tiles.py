"""A tile of weights as the operand of a matrix unit, in each format.

Knows payloads and block scales as they lie in memory; leaves the scales of rows to what follows.

Four-bit codes are unpacked in registers, two at a time: a byte's nibbles are moved into the halves
of a 32-bit word, where they become two bf16. On Hopper that is three instructions a weight, its
scale included, against five by way of fp32, and wgmma takes them from registers. At 26B a layer of
experts has 5.8 million weights for each multiprocessor of an H200: some 0.1 ms with the rest of the
loop, a little more than reading them takes.
Shapes: N outputs, K inputs of a product.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Tiles in nvfp4 are smaller by this: 2^126, which an e2m1 code lacks as the exponent of a bf16,
# times the largest block scale is more than a bf16 holds.
NVFP4_UNIT = tl.constexpr(128.0)
_NVFP4_SCALE = tl.constexpr(2.0**119)


@triton.jit
def weight_tile(
    payload,
    block_scale,
    first,  # where rows are counted from
    row,  # [BLOCK_N]
    start,
    FORMAT: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """`[BLOCK_N, BLOCK_K]` in the type of the lines; zero beyond K."""
    if FORMAT == "int4":
        tile = _four_bit_tile(
            payload, block_scale, first, row, start, FORMAT, 64, K, BLOCK_N, BLOCK_K
        )
    elif FORMAT == "nvfp4":
        tile = _four_bit_tile(
            payload, block_scale, first, row, start, FORMAT, 16, K, BLOCK_N, BLOCK_K
        )
    else:
        tile = _load(payload, first, row, start, K, BLOCK_K)
    return tile


@triton.jit
def _load(values, first, row, start, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    column = start + tl.arange(0, BLOCK)
    at = values + first * WIDTH + row[:, None] * WIDTH + column[None, :]
    is_whole: tl.constexpr = WIDTH % BLOCK == 0
    within = None if is_whole else (column < WIDTH)[None, :]
    return tl.load(at, mask=within, other=None if is_whole else 0.0)


@triton.jit
def _four_bit_tile(
    payload,
    block_scale,
    first,
    row,
    start,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Code times block scale, in bf16."""
    packed = _load(payload, first, row, start // 2, K // 2, BLOCK_K // 2).to(tl.int32)
    scale = _load(block_scale, first, row, start // GROUP, K // GROUP, BLOCK_K // GROUP)
    # The even column's nibble stays where it is, the odd one's comes to bit 16.
    pair = packed | (packed << 12)
    if FORMAT == "int4":
        # 136 + code: the exponent of 128 above the code, whose sign, flipped, counts from -8.
        pair = (pair & 0x000F000F) ^ 0x43084308
        even, odd = _half(pair) - 136.0, _half(pair >> 16) - 136.0
    else:
        # Exponent and mantissa to those of a bf16, whose exponents begin 2^126 lower; its smallest
        # numbers then are those of e2m1 too.
        pair = ((pair << 6) & 0x01C001C0) | ((pair << 12) & -0x7FFF8000)
        even, odd = _half(pair), _half(pair >> 16)
        scale = (scale.to(tl.float32) * _NVFP4_SCALE).to(tl.bfloat16)
    scale = scale[:, :, None].broadcast_to(BLOCK_N, BLOCK_K // GROUP, GROUP // 2)
    scale = scale.reshape(BLOCK_N, BLOCK_K // 2)
    return tl.join(even * scale, odd * scale).reshape(BLOCK_N, BLOCK_K)


@triton.jit
def _half(word):
    """The low half of words, as bf16."""
    return word.to(tl.int16).to(tl.bfloat16, bitcast=True)
