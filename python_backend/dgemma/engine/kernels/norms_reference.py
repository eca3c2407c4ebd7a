"""What `norms` computes, in plain torch by the same signatures; engines on CPUs run it.

Knows no Triton. Computes in fp32 and rounds where `norms` does: to the inputs' type, so that
nothing is rounded where they are fp32.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma.engine.kernels.operands import FP8, FP8_MOST, Lines

SMALLEST_LINE = 1e-12  # in place of the largest value of a line that is all zeros


def quantize_rows(x: Tensor) -> Lines:
    wide = x.float()
    scale = wide.abs().amax(-1).clamp(min=SMALLEST_LINE) / FP8_MOST
    return Lines((wide / scale[:, None]).to(FP8), scale, x.dtype)


def normed(x: Tensor, weight: Tensor, eps: float, fp8: bool) -> Lines:
    return _lines(_norm(x, weight, eps), x.dtype, fp8)


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
    out = (x.float() + _norm(attended, post_attention, eps)).to(x.dtype)
    return (
        out,
        normed(out, pre_feedforward, eps, fp8_dense),
        normed(out, pre_feedforward_2, eps, fp8_routed),
        _norm(out, router_scale, eps).to(x.dtype),
    )


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
    many = routed.float().unbind(1)[0]
    for one in routed.float().unbind(1)[1:]:
        many = many + one
    both = _norm(dense, post_1, eps) + _norm(many, post_2, eps)
    factor = scalar.repeat_interleave(x.shape[0] // scalar.shape[0])[:, None]
    out = ((x.float() + _norm(both, post, eps)) * factor).to(x.dtype)
    return out, normed(out, next_weight, eps, fp8)


def entered(
    ids: Tensor, embedding: Tensor, scale: float, conditioned: Tensor, denoise: Tensor, eps: float
) -> Tensor:
    rounded = torch.tensor(scale, dtype=embedding.dtype, device=embedding.device).float()
    embedded = embedding[ids].float() * rounded
    mixed = _norm(embedded + conditioned.float(), None, eps)
    mixes = denoise.repeat_interleave(ids.shape[0] // denoise.shape[0])[:, None]
    return torch.where(mixes, mixed, embedded).to(conditioned.dtype)


def _norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    wide = None if weight is None else weight.float()
    return F.rms_norm(x.float(), (x.shape[-1],), wide, eps)


def _lines(wide: Tensor, dtype: torch.dtype, fp8: bool) -> Lines:
    return replace(quantize_rows(wide), rounded_from=dtype) if fp8 else Lines(wide.to(dtype))
