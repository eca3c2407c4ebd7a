"""The mixture of experts: router, capacity dispatch, expert products.

Knows how tokens travel to experts and back with static shapes; knows nothing of attention.
Shapes: T tokens, D hidden size, E experts, k experts per token, C capacity, I expert width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgemma.geometry import Geometry
from dgemma.model.layers import gelu


class Router(nn.Module):
    """Scores experts from the raw residual stream, in fp32."""

    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.top_k = g.top_k_experts
        self.root = g.hidden_size**-0.5
        self.eps = g.rms_norm_eps
        self.proj = nn.Linear(g.hidden_size, g.num_experts, bias=False)
        self.scale = nn.Parameter(torch.ones(g.hidden_size))
        self.per_expert_scale = nn.Parameter(torch.ones(g.num_experts))

    @property
    def norm_scale(self) -> Tensor:
        """The scale of its own norm, `[D]` fp32."""
        scale: Tensor = self.scale * self.root
        return scale.float()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and expert ids, each `[T, k]`, of tokens `[T, D]`."""
        normed = F.rms_norm(x.float(), (x.shape[-1],), self.norm_scale, self.eps).to(x.dtype)
        scores = self.proj(normed)  # [T, E]
        weights, experts = torch.softmax(scores.float(), -1).topk(self.top_k, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        return (weights * self.per_expert_scale[experts]).to(x.dtype), experts


class Experts(nn.Module):
    """The bank of expert weights, and the way through it: at most C tokens for each expert."""

    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.num_experts = g.num_experts
        inner = g.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(g.num_experts, 2 * inner, g.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(g.num_experts, g.hidden_size, inner))

    def forward(
        self, x: Tensor, weights: Tensor, experts: Tensor, capacity: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mixed output `[T, D]` and the largest expert load, a scalar.

        `capacity` is `arange(C)`: only its length matters, which keeps C a dynamic axis of the
        graph. Where the load exceeds C the output is void and the pass must be run again.
        """
        room, top_k = capacity.shape[0], experts.shape[1]
        place, load = places(experts, self.num_experts)  # [T * k]
        flat = experts.reshape(-1)
        # A token without room is parked in one extra place, so that it never displaces another.
        parked = self.num_experts * room
        target = torch.where(place < room, flat * room + place, parked)  # [T * k]
        tokens = torch.arange(flat.shape[0]) // top_k
        source = torch.zeros(parked + 1, dtype=torch.int64).scatter(0, target, tokens)
        gathered = x.index_select(0, source[:-1]).unflatten(0, (self.num_experts, room))
        gate, up = (gathered @ self.gate_up_proj.transpose(1, 2)).chunk(2, -1)  # [E, C, I]
        out = (gelu(gate) * up) @ self.down_proj.transpose(1, 2)  # [E, C, D]
        back = out.flatten(0, 1).index_select(0, target.clamp(max=parked - 1))  # [T * k, D]
        back = back.unflatten(0, (-1, top_k)) * weights[..., None]
        return back.sum(1), load


def places(experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Each assignment's place in its expert's queue `[T * k]`, and the longest queue.

    Queues are in token order, so a token's place depends on who stands before it, but what is
    computed for it does not.
    """
    chosen = experts.reshape(-1, 1) == torch.arange(num_experts)  # [T * k, E]
    counts = chosen.to(torch.int32).cumsum(0)
    place = (counts * chosen.to(torch.int32)).sum(-1) - 1
    return place.to(torch.int64), counts[-1].amax(0)
