"""A layer's products side by side: the same algebra in fewer operations.

Knows how the weights of one layer join, for hosts where starting an operation costs more than
computing it, and for experts so few and tiny that each of them may compute every token. Gives what
`Attention` and `Layer` give, up to rounding; joined weights are constants that a runtime folds.
Shapes: R rows, L row length, D hidden size, H query heads, G K/V heads, d head size, E experts,
I expert width, J width of the dense feed-forward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgemma.model.attention import Attention, Keys
from dgemma.model.experts import Experts, Router
from dgemma.model.layers import GatedMLP, RMSNorm, gelu, rotate, unscaled_norm


def project(attention: Attention, h: Tensor, keys: Keys) -> tuple[Tensor, Tensor, Tensor]:
    """q `[R, H, L, d]`, k and v `[R, G, L, d]` of `h [R, L, D]`, head by head: nothing to split."""
    a = attention
    raw = by_head(h, a.k_proj, a.kv_heads)
    values = raw if a.v_proj is None else by_head(h, a.v_proj, a.kv_heads)
    q = rotate(a.q_norm(by_head(h, a.q_proj, a.heads)), keys.cos, keys.sin)
    k = rotate(a.k_norm(raw), keys.cos, keys.sin)
    return q, k, a.v_norm(values)


def by_head(h: Tensor, linear: nn.Linear, heads: int) -> Tensor:
    """`linear(h)` as `[R, heads, L, d]`, a product per head in place of one and a transposition."""
    weight = linear.weight.unflatten(0, (heads, -1)).transpose(1, 2)  # [heads, D, d]
    parts: Tensor = h[:, None] @ weight
    return parts


def feed_forward(
    x: Tensor,
    dense: tuple[RMSNorm, GatedMLP, RMSNorm],
    routed: tuple[RMSNorm, Experts, RMSNorm],
    router: Router,
) -> Tensor:
    """The dense and the routed feed-forward of `x [R, L, D]`, each normed, added up."""
    before, mlp, after = dense
    before_routed, experts, after_routed = routed
    count, _, width = experts.down_proj.shape
    gates, ups = experts.gate_up_proj.chunk(2, 1)  # [E, I, D]
    scale, routed_scale = before.scale, before_routed.scale
    gate = torch.cat([mlp.gate_proj.weight * scale, gates.flatten(0, 1) * routed_scale])
    up = torch.cat([mlp.up_proj.weight * scale, ups.flatten(0, 1) * routed_scale])
    normed = unscaled_norm(x, before.eps)
    inner = gelu(F.linear(normed, gate)) * F.linear(normed, up)  # [R, L, J + E * I]
    share = shares(router, F.linear(normed, router.proj.weight * router.norm_scale))
    wide, narrow = inner.split([mlp.gate_proj.out_features, count * width], -1)
    narrow = (narrow.unflatten(-1, (count, width)) * share[..., None]).flatten(-2)
    down = experts.down_proj * router.per_expert_scale[:, None, None]
    down = down.transpose(0, 1).flatten(1)  # [D, E * I]
    mixed: Tensor = after(mlp.down_proj(wide)) + after_routed(F.linear(narrow, down))
    return mixed


def shares(router: Router, scores: Tensor) -> Tensor:
    """Each expert's weight `[.., E]` of scores `[.., E]`: zero but for the top k, and without
    `per_expert_scale`, which `feed_forward` folds into the experts' down projections.

    A softmax over the top k alone is the renormalised softmax over all.
    """
    top, chosen = scores.float().topk(router.top_k, -1)
    kept = torch.softmax(top, -1).to(scores.dtype)
    return (scores * 0).scatter(-1, chosen, kept)
