"""Routing in plain torch: what `routing.route` computes, and what runs on CPUs.

Knows the router's algebra behind its projection; knows nothing of kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgemma.engine.kernels.routed import Routed


def route(scores: Tensor, top_k: int, per_expert_scale: Tensor) -> Routed:
    """Scores `[T, E]` in bf16 or fp32 -> where each token goes; the first of equals is chosen."""
    num_experts = scores.shape[1]
    # A stable sort, since topk leaves open which of equals it takes.
    chosen = scores.float().sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = torch.softmax(scores.float(), -1).gather(1, chosen)
    weights = weights / weights.sum(-1, keepdim=True) * per_expert_scale[chosen]
    flat = chosen.flatten()
    counts = (flat[:, None] == torch.arange(num_experts, device=flat.device)).sum(0)
    offsets = torch.zeros(num_experts + 1, dtype=torch.int32, device=flat.device)
    offsets[1:] = counts.cumsum(0)
    order = flat.sort(stable=True).indices
    return Routed(weights, chosen.int(), order.int(), offsets)
