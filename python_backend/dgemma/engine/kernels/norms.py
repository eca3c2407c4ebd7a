"""The norms between a layer's products, joined with the sums and the rounding around them.

Knows the algebra of `dgemma.model.network` from one product to the next; knows neither products nor
attention. Everything is computed in fp32, one program a token, in an order that depends on nothing
but the width. `norms_reference` says the same in plain torch, by the same signatures.
Shapes: T tokens, D hidden size, K width of a product's input, k experts of a token, R rows, V
vocabulary. Tensors are contiguous, or ValueError says which is not.

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
from torch import Tensor

from dgemma.engine.kernels import norms_kernels as kernels
from dgemma.engine.kernels.chip import Chip
from dgemma.engine.kernels.operands import FP8, Lines
from dgemma.engine.kernels.variant import Variant
from dgemma.geometry import Geometry


def quantize_rows(x: Tensor) -> Lines:
    """Rows of `x [M, K]` in e4m3, each by its own largest value."""
    _contiguous(x=x)
    lines = _empty(x, fp8=True)
    kernels.normed[(x.shape[0],)](x, None, lines.values, lines.scale, 0.0, **_layout(x.shape[1]))
    return lines


def normed(x: Tensor, weight: Tensor, eps: float, fp8: bool) -> Lines:
    """The norm of `x [T, D]` with `weight [D]`."""
    _contiguous(x=x)
    lines = _empty(x, fp8)
    kernels.normed[(x.shape[0],)](x, weight, lines.values, lines.scale, eps, **_layout(x.shape[1]))
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
    _contiguous(x=x, attended=attended)
    out, router_input = torch.empty_like(x), torch.empty_like(x)
    dense, routed = _empty(x, fp8_dense), _empty(x, fp8_routed)
    kernels.after_attention[(x.shape[0],)](
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
    next_weight: Tensor,
    eps: float,
    fp8: bool,
) -> tuple[Tensor, Lines]:
    """`x [T, D]` as it leaves the layer, and the norm of it with `next_weight [D]`.

    `dense [T, D]`, `routed [T, k, D]` by expert and weighted; `scalar` fp32 `[R]`, one for each
    T / R tokens; `post_1`, `post_2` and `post` `[D]` are the norms' after dense, routed and both.
    """
    _contiguous(x=x, dense=dense, routed=routed)
    out = torch.empty_like(x)
    lines = _empty(x, fp8)
    kernels.after_feed_forward[(x.shape[0],)](
        *(x, dense, routed, post_1, post_2, post, scalar, next_weight),
        *(out, lines.values, lines.scale, eps),
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
    _contiguous(ids=ids, embedding=embedding, conditioned=conditioned, denoise=denoise)
    out = torch.empty_like(conditioned)
    rounded = float(torch.tensor(scale, dtype=embedding.dtype, device="cpu"))
    length = ids.shape[0] // denoise.shape[0]
    kernels.entered[(ids.shape[0],)](
        *(ids, embedding, rounded, conditioned, denoise, out, eps, length),
        **_layout(embedding.shape[1]),
    )
    return out


def _contiguous(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name}: strides {tensor.stride()} of {[*tensor.shape]} leave gaps")


def _empty(like: Tensor, fp8: bool) -> Lines:
    if not fp8:
        return Lines(torch.empty_like(like))
    scale = torch.empty(like.shape[0], dtype=torch.float32, device=like.device)
    return Lines(torch.empty_like(like, dtype=FP8), scale)


def _layout(width: int) -> dict[str, int]:
    """Sixteen values a thread: two loads of 16 bytes in bf16, and a whole row in registers."""
    block = max(triton.next_power_of_2(width), 512)
    return {"D": width, "BLOCK": block, "num_warps": min(block // 512, 16)}


def variants(geometry: Geometry, chip: Chip) -> Iterator[Variant]:
    """In fp8 what feeds products of it, by the policies of `dgemma.precision`."""
    formats = ("bf16", "fp8") if chip.has_fp8 else ("bf16",)
    width, row = geometry.hidden_size, "*bf16"
    for columns in sorted({geometry.intermediate_size, geometry.moe_intermediate_size}):
        if chip.has_fp8:
            types = {"x": row, "weight": None, **_lines("fp8", "values", "scales"), "eps": "fp32"}
            yield _variant(f"quantize_rows {columns}", kernels.normed, types, columns)
    for form in formats:
        types = {"x": row, "weight": row, **_lines(form, "values", "scales"), "eps": "fp32"}
        yield _variant(f"normed {form}", kernels.normed, types, width)
    for dense, routed in (("bf16", "bf16"), ("bf16", "fp8"), ("fp8", "fp8")):
        if {dense, routed} <= {*formats}:
            names = ("x", "attended", "post", "before_dense", "before_routed")
            types = dict.fromkeys(names, row) | {"router": "*fp32", "out": row}
            types |= _lines(dense, "dense", "dense_scales")
            types |= _lines(routed, "routed", "routed_scales")
            types |= {"router_input": row, "eps": "fp32"}
            yield _variant(
                f"after_attention {dense} {routed}", kernels.after_attention, types, width
            )
    for form in formats:
        types = dict.fromkeys(("x", "dense", "routed", "post_1", "post_2", "post"), row)
        types |= {"scalar": "*fp32", "following": row, "out": row}
        types |= _lines(form, "values", "scales")
        types |= {"eps": "fp32", "length": "i32", "TOP": geometry.top_k_experts}
        yield _variant(f"after_feed_forward {form}", kernels.after_feed_forward, types, width)
    types = {"ids": "*i64", "embedding": row, "scale": "fp32", "conditioned": row}
    types |= {"denoise": "*i1", "out": row, "eps": "fp32", "length": "i32"}
    yield _variant("entered", kernels.entered, types, width)


def _lines(form: str, values: str, scales: str) -> dict[str, Any]:
    if form == "fp8":
        return {values: "*fp8e4nv", scales: "*fp32"}
    return {values: "*bf16", scales: None}


def _variant(name: str, kernel: Any, types: dict[str, Any], width: int) -> Variant:
    """`types` of arguments by name, or values of those that are constants."""
    constants = {key: value for key, value in types.items() if not isinstance(value, str)}
    layout = _layout(width)
    num_warps = layout.pop("num_warps")
    return Variant(
        f"norms.{name}",
        kernel,
        {key: value for key, value in types.items() if key not in constants},
        constants | layout,
        aligned=frozenset({"length"} & types.keys()),
        num_warps=num_warps,
    )
