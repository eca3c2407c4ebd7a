"""The kernels of `norms`, one program a token, which holds a whole row in registers.

Knows pointers and columns; what they compute, and for which tensors, stands in `norms`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dgemma.engine.kernels.norms_reference import SMALLEST_LINE
from dgemma.engine.kernels.operands import FP8_MOST

_SMALLEST = tl.constexpr(SMALLEST_LINE)
_MOST = tl.constexpr(FP8_MOST)


@triton.jit
def _load(pointer, columns, D: tl.constexpr):
    return tl.load(pointer + columns, mask=columns < D, other=0.0).to(tl.float32)


@triton.jit
def _unit(x, eps, D: tl.constexpr):
    """`x / rms(x)`; columns beyond D hold zeros."""
    return x * tl.rsqrt(tl.sum(x * x, 0) / D + eps)


@triton.jit
def _store(values, scales, token, columns, x, D: tl.constexpr):
    """One of `Lines`: in e4m3 where there are scales."""
    if scales is not None:
        # Divisions round as the reference's do, or codes would differ.
        scale = tl.div_rn(tl.maximum(tl.max(tl.abs(x), 0), _SMALLEST), _MOST)
        tl.store(scales + token, scale)
        x = tl.div_rn(x, scale)
    tl.store(values + token * D + columns, x.to(values.dtype.element_ty), mask=columns < D)


@triton.jit
def normed(x, weight, values, scales, eps, D: tl.constexpr, BLOCK: tl.constexpr):
    """`weight` is None where rows are only rounded."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    row = _load(x + token * D, columns, D)
    if weight is not None:
        row = _unit(row, eps, D) * _load(weight, columns, D)
    _store(values, scales, token, columns, row, D)


@triton.jit
def after_attention(
    x, attended, post, before_dense, before_routed, router, out, dense, dense_scales,
    routed, routed_scales, router_input, eps, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    row = _load(x + token * D, columns, D)
    added = _load(attended + token * D, columns, D)
    post_weight = _load(post, columns, D)
    dense_weight = _load(before_dense, columns, D)
    routed_weight = _load(before_routed, columns, D)
    router_weight = _load(router, columns, D)
    # What the norms read is what the residual stream keeps.
    kept = (row + _unit(added, eps, D) * post_weight).to(out.dtype.element_ty)
    tl.store(out + token * D + columns, kept, mask=columns < D)
    unit = _unit(kept.to(tl.float32), eps, D)
    _store(router_input, None, token, columns, unit * router_weight, D)
    _store(dense, dense_scales, token, columns, unit * dense_weight, D)
    _store(routed, routed_scales, token, columns, unit * routed_weight, D)


@triton.jit
def after_feed_forward(
    x, dense, routed, post_1, post_2, post, scalar, following, out, values, scales, eps, length,
    TOP: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`following` is the next norm's weight."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    row = _load(x + token * D, columns, D)
    one = _load(dense + token * D, columns, D)
    many = _load(routed + token * TOP * D, columns, D)
    for expert in tl.static_range(1, TOP):
        many += _load(routed + (token * TOP + expert) * D, columns, D)
    weight_1 = _load(post_1, columns, D)
    weight_2 = _load(post_2, columns, D)
    weight = _load(post, columns, D)
    following_weight = _load(following, columns, D)
    factor = tl.load(scalar + token // length)
    both = _unit(one, eps, D) * weight_1 + _unit(many, eps, D) * weight_2
    kept = ((row + _unit(both, eps, D) * weight) * factor).to(out.dtype.element_ty)
    tl.store(out + token * D + columns, kept, mask=columns < D)
    normed = _unit(kept.to(tl.float32), eps, D) * following_weight
    _store(values, scales, token, columns, normed, D)


@triton.jit
def entered(
    ids, embedding, scale, conditioned, denoise, out, eps, length,
    D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mixes = tl.load(denoise + token // length) != 0
    mask = (columns < D) & mixes
    soft = tl.load(conditioned + token * D + columns, mask=mask, other=0.0).to(tl.float32)
    row = _load(embedding + tl.load(ids + token) * D, columns, D) * scale
    row = tl.where(mixes, _unit(row + soft, eps, D), row)
    _store(out, None, token, columns, row, D)
