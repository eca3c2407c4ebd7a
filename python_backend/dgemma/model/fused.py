"""A layer's products side by side: the same algebra in fewer and larger operations.

Knows how the weights of one layer join, for hosts where starting an operation costs more than
computing it, and for experts so few and tiny that each of them may compute every token. Gives what
`Attention` and `Layer` give, up to rounding; joined weights are constants that a runtime folds.
Shapes: R rows, L row length, D hidden size, H query heads, G K/V heads, d head size, E experts,
I expert width, J width of the dense feed-forward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma.model.attention import Attention, Keys
from dgemma.model.experts import Experts, Router
from dgemma.model.layers import GatedMLP, RMSNorm, gelu, rotate, unscaled_norm


def project(attention: Attention, h: Tensor, keys: Keys) -> tuple[Tensor, Tensor, Tensor]:
    """q `[R, H, L, d]`, k and v `[R, G, L, d]` of `h [R, L, D]`: one product, one norm."""
    a = attention
    parts = [a.q_proj, a.k_proj] if a.v_proj is None else [a.q_proj, a.k_proj, a.v_proj]
    weight = torch.cat([part.weight for part in parts])
    heads = F.linear(h, weight).unflatten(-1, (-1, a.dim)).transpose(1, 2)
    normed = unscaled_norm(heads, a.q_norm.eps)
    scales = [(a.q_norm, a.heads), (a.k_norm, a.kv_heads)]
    scale = torch.cat([norm.scale.expand(count, 1, a.dim) for norm, count in scales])
    rotated = rotate(normed[:, : a.heads + a.kv_heads] * scale, keys.cos, keys.sin)
    # The last heads are the values' own or, where there are none, the keys that serve as values.
    return rotated[:, : a.heads], rotated[:, a.heads :], normed[:, -a.kv_heads :]


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
    down = experts.down_proj.transpose(0, 1).flatten(1)  # [D, E * I]
    mixed: Tensor = after(mlp.down_proj(wide)) + after_routed(F.linear(narrow, down))
    return mixed


def shares(router: Router, scores: Tensor) -> Tensor:
    """Each expert's weight `[.., E]` of scores `[.., E]`: zero but for the top k."""
    p = torch.softmax(scores.float(), -1)
    top, chosen = p.topk(router.top_k, -1)
    kept = (p * 0).scatter(-1, chosen, top)
    return (kept / top.sum(-1, keepdim=True) * router.per_expert_scale).to(scores.dtype)
