"""The norms between a layer's products, joined with the sums and the rounding around them.

Knows the algebra of `dgemma.model.network` from one product to the next; knows neither products nor
attention. Everything is computed in fp32, one program a token, in an order that depends on nothing
but the width. `norms_reference` says the same in plain torch, by the same signatures.
Shapes: T tokens, D hidden size, K width of a product's input, k experts of a token, R rows, V
vocabulary. Tensors are contiguous.

Bytes of a token at D = 2816, k = 8 in fp8: 8.4 kB normed, 28 kB after attention, 65 kB after the
feed-forward (45 of them the experts'), 17 kB entered. 256 tokens are 2 to 17 MB, which stay in the
L2 of a large GPU: what they take is the latency of one round of loads, so all of them stand before
the first reduction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dgemma.engine.kernels.chip import Chip
from dgemma.engine.kernels.norms_reference import SMALLEST_LINE
from dgemma.engine.kernels.operands import FP8, FP8_MOST, Lines
from dgemma.engine.kernels.variant import Variant
from dgemma.geometry import Geometry

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
def _normed(x, weight, values, scales, eps, D: tl.constexpr, BLOCK: tl.constexpr):
    """`weight` is None where rows are only rounded."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    row = _load(x + token * D, columns, D)
    if weight is not None:
        row = _unit(row, eps, D) * _load(weight, columns, D)
    _store(values, scales, token, columns, row, D)


@triton.jit
def _after_attention(
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
def _after_feed_forward(
    x, dense, routed, post_1, post_2, post, scalar, following, out, values, scales, eps, length,
    TOP: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`following` is the next norm's weight, or None where nothing follows."""
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
    if following is not None:
        following_weight = _load(following, columns, D)
    factor = tl.load(scalar + token // length)
    both = _unit(one, eps, D) * weight_1 + _unit(many, eps, D) * weight_2
    kept = ((row + _unit(both, eps, D) * weight) * factor).to(out.dtype.element_ty)
    tl.store(out + token * D + columns, kept, mask=columns < D)
    if following is not None:
        normed = _unit(kept.to(tl.float32), eps, D) * following_weight
        _store(values, scales, token, columns, normed, D)


@triton.jit
def _entered(
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


def quantize_rows(x: Tensor) -> Lines:
    """Rows of `x [M, K]` in e4m3, each by its own largest value."""
    lines = _empty(x.shape[0], x.shape[1], x, fp8=True)
    _normed[(x.shape[0],)](x, None, lines.values, lines.scale, 0.0, **_layout(x.shape[1]))
    return lines


def normed(x: Tensor, weight: Tensor, eps: float, fp8: bool) -> Lines:
    """The norm of `x [T, D]` with `weight [D]`."""
    lines = _empty(*x.shape, x, fp8)
    _normed[(x.shape[0],)](x, weight, lines.values, lines.scale, eps, **_layout(x.shape[1]))
    return lines


def after_attention(
    x: Tensor,
    attended: Tensor,
    post_attention: Tensor,
    pre_feedforward: Tensor,
    pre_feedforward_2: Tensor,
    router_scale: Tensor,
    eps: float,
    *,
    fp8_dense: bool,
    fp8_routed: bool,
) -> tuple[Tensor, Lines, Lines, Tensor]:
    """`x [T, D]` with what attention adds, and what enters both feed-forwards and the router.

    `router_scale [D]` is `Router.norm_scale`, D^-0.5 included; the other weights `[D]` are norms'.
    """
    out, router_input = torch.empty_like(x), torch.empty_like(x)
    dense, routed = _empty(*x.shape, x, fp8_dense), _empty(*x.shape, x, fp8_routed)
    _after_attention[(x.shape[0],)](
        *(x, attended, post_attention, pre_feedforward, pre_feedforward_2, router_scale, out),
        *(dense.values, dense.scale, routed.values, routed.scale, router_input, eps),
        **_layout(x.shape[1]),
    )
    return out, dense, routed, router_input


def after_feed_forward(
    x: Tensor,
    dense: Tensor,
    routed: Tensor,
    post_1: Tensor,
    post_2: Tensor,
    post: Tensor,
    scalar: Tensor,
    next_weight: Tensor | None,
    eps: float,
    fp8: bool,
) -> tuple[Tensor, Lines | None]:
    """`x [T, D]` as it leaves the layer, and the norm of it with `next_weight [D]`.

    `dense [T, D]`, `routed [T, k, D]` by expert and weighted; `scalar` fp32 `[R]`, one for each
    T / R tokens; `post_1`, `post_2` and `post` `[D]` are the norms' after dense, routed and both.
    """
    out = torch.empty_like(x)
    lines = None if next_weight is None else _empty(*x.shape, x, fp8)
    values, scales = (lines.values, lines.scale) if lines else (None, None)
    _after_feed_forward[(x.shape[0],)](
        *(x, dense, routed, post_1, post_2, post, scalar, next_weight, out, values, scales, eps),
        x.shape[0] // scalar.shape[0],
        TOP=routed.shape[1],
        **_layout(x.shape[1]),
    )
    return out, lines


def entered(
    ids: Tensor, embedding: Tensor, scale: float, conditioned: Tensor, denoise: Tensor, eps: float
) -> Tensor:
    """What enters the layers, `[T, D]`: the embedding of `ids` int64 `[T]`, conditioned or not.

    `embedding [V, D]`; `scale` is rounded to its type; `conditioned [T, D]` leaves the MLP of
    self-conditioning; `denoise` bool `[R]` says of each T / R tokens whether it counts.
    """
    out = torch.empty_like(conditioned)
    rounded = float(torch.tensor(scale, dtype=embedding.dtype, device="cpu"))
    length = ids.shape[0] // denoise.shape[0]
    _entered[(ids.shape[0],)](
        *(ids, embedding, rounded, conditioned, denoise, out, eps, length),
        **_layout(embedding.shape[1]),
    )
    return out


def _empty(lines: int, width: int, like: Tensor, fp8: bool) -> Lines:
    shape, device = (lines, width), like.device
    if not fp8:
        return Lines(torch.empty(shape, dtype=like.dtype, device=device))
    scale = torch.empty(lines, dtype=torch.float32, device=device)
    return Lines(torch.empty(shape, dtype=FP8, device=device), scale)


def _layout(width: int) -> dict[str, int]:
    """Sixteen values a thread: two loads of 16 bytes in bf16, and a whole row in registers."""
    block = max(triton.next_power_of_2(width), 512)
    return {"D": width, "BLOCK": block, "num_warps": min(block // 512, 16)}


def variants(geometry: Geometry, chip: Chip) -> Iterator[Variant]:
    """In fp8 what feeds products of it, by the policies of `dgemma.precision`."""
    width, formats = geometry.hidden_size, ("bf16", "fp8") if chip.has_fp8 else ("bf16",)
    heads = geometry.num_attention_heads
    inner = {geometry.intermediate_size, geometry.moe_intermediate_size}
    widths = sorted(inner | {heads * layer.head_dim for layer in geometry.layers})
    for columns in widths if chip.has_fp8 else ():
        row = {"x": "*bf16", "weight": None, **_lines("fp8", "values", "scales"), "eps": "fp32"}
        yield _variant(f"quantize_rows {columns}", _normed, row, columns)
    for form in formats:
        lines = _lines(form, "values", "scales")
        arguments = {"x": "*bf16", "weight": "*bf16", **lines, "eps": "fp32"}
        yield _variant(f"normed {form}", _normed, arguments, width)
    names = ("x", "attended", "post", "before_dense", "before_routed")
    for dense, routed in (("bf16", "bf16"), ("bf16", "fp8"), ("fp8", "fp8")):
        if {dense, routed} <= {*formats}:
            arguments = {**dict.fromkeys(names, "*bf16"), "router": "*fp32", "out": "*bf16"}
            arguments |= _lines(dense, "dense", "dense_scales")
            arguments |= _lines(routed, "routed", "routed_scales")
            arguments |= {"router_input": "*bf16", "eps": "fp32"}
            yield _variant(f"after_attention {dense} {routed}", _after_attention, arguments, width)
    names = ("x", "dense", "routed", "post_1", "post_2", "post")
    for form in formats:
        arguments = {**dict.fromkeys(names, "*bf16"), "scalar": "*fp32"}
        arguments |= {"following": "*bf16", "out": "*bf16", **_lines(form, "values", "scales")}
        arguments |= {"eps": "fp32", "length": "i32", "TOP": geometry.top_k_experts}
        yield _variant(f"after_feed_forward {form}", _after_feed_forward, arguments, width)
    arguments = {"ids": "*i64", "embedding": "*bf16", "scale": "fp32", "conditioned": "*bf16"}
    arguments |= {"denoise": "*i1", "out": "*bf16", "eps": "fp32", "length": "i32"}
    yield _variant("entered", _entered, arguments, width)


def _lines(form: str, values: str, scales: str) -> dict[str, Any]:
    return (
        {values: "*fp8e4nv", scales: "*fp32"} if form == "fp8" else {values: "*bf16", scales: None}
    )


def _variant(name: str, kernel: Any, arguments: dict[str, Any], width: int) -> Variant:
    """`arguments`: a type, or the value of a constant, by name."""
    constants = {key: value for key, value in arguments.items() if not isinstance(value, str)}
    layout = _layout(width)
    num_warps = layout.pop("num_warps")
    return Variant(
        f"norms.{name}",
        kernel,
        {key: value for key, value in arguments.items() if key not in constants},
        constants | layout,
        aligned=frozenset({"length"} & arguments.keys()),
        num_warps=num_warps,
    )
