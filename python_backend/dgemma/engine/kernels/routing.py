"""From the router's scores to the order in which experts meet tokens, on the device alone.

Knows the router's algebra behind its projection, and how assignments are sorted without atomics;
knows nothing of weights. Two launches: tokens choose, then each expert finds who chose it.
Shapes: T tokens, E experts, k experts per token.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from dgemma.engine.kernels.chip import Chip
from dgemma.engine.kernels.routed import Routed
from dgemma.engine.kernels.variant import Variant
from dgemma.geometry import Geometry

# A warp for each token, so that its reductions stay within one.
_TOKENS = 4
# 2048 assignments of a canvas are one round of the scan; 32 rows of 256 tokens are 32 rounds,
# 256 KiB that each expert reads from L2.
_ASSIGNMENTS = 2048


@triton.jit
def _choose(
    scores,  # [T, E]
    scale,  # [E]
    weights,  # [T, k]
    experts,  # [T, k]
    T,
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    PADDED_E: tl.constexpr,
    PADDED_K: tl.constexpr,
    TOKENS: tl.constexpr,
):
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.arange(0, PADDED_E)
    place = tl.arange(0, PADDED_K)
    row = tl.minimum(token, T - 1)[:, None]
    left = tl.load(
        scores + row * E + column[None, :], mask=(column < E)[None, :], other=float("-inf")
    ).to(tl.float32)
    highest = tl.max(left, 1)
    total = tl.sum(tl.exp(left - highest[:, None]), 1)
    chosen = tl.zeros([TOKENS, PADDED_K], tl.int32)
    best = tl.zeros([TOKENS, PADDED_K], tl.float32)
    for i in tl.static_range(TOP_K):
        value, expert = tl.max(left, 1, return_indices=True, return_indices_tie_break_left=True)
        # NaN is in no order, and must not lead out of the bank.
        expert = tl.minimum(expert, E - 1)
        chosen = tl.where((place == i)[None, :], expert[:, None], chosen)
        share = tl.exp(value - highest) / total
        best = tl.where((place == i)[None, :], share[:, None], best)
        left = tl.where(column[None, :] == expert[:, None], float("-inf"), left)
    kept = (token < T)[:, None] & (place < TOP_K)[None, :]
    best = best / tl.sum(best, 1)[:, None] * tl.load(scale + chosen)
    target = token[:, None] * TOP_K + place[None, :]
    tl.store(weights + target, best, mask=kept)
    tl.store(experts + target, chosen, mask=kept)


@triton.jit
def _sort(
    experts,  # [T * k]
    order,  # [T * k]
    offsets,  # [E + 1]
    assignments,
    ASSIGNMENTS: tl.constexpr,
):
    """One program for each expert, and one that finds the end of all."""
    expert = tl.program_id(0)
    lane = tl.arange(0, ASSIGNMENTS)
    before = tl.zeros([ASSIGNMENTS], tl.int32)
    for start in range(0, assignments, ASSIGNMENTS):
        chosen = tl.load(experts + start + lane, mask=start + lane < assignments, other=2**30)
        before += (chosen < expert).to(tl.int32)
    begin = tl.sum(before, 0)
    tl.store(offsets + expert, begin)
    for start in range(0, assignments, ASSIGNMENTS):
        chosen = tl.load(experts + start + lane, mask=start + lane < assignments, other=2**30)
        mine = (chosen == expert).to(tl.int32)
        rank = tl.cumsum(mine, 0) - mine
        tl.store(order + begin + rank, start + lane, mask=mine == 1)
        begin += tl.sum(mine, 0)


def route(scores: Tensor, top_k: int, per_expert_scale: Tensor) -> Routed:
    """Scores `[T, E]` in bf16 or fp32 -> where each token goes; the first of equals is chosen.

    `per_expert_scale` is `[E]` in fp32. Every token's own choice depends on its scores alone.
    """
    tokens, num_experts = scores.shape
    device = scores.device
    weights = torch.empty(tokens, top_k, dtype=torch.float32, device=device)
    experts = torch.empty(tokens, top_k, dtype=torch.int32, device=device)
    order = torch.empty(tokens * top_k, dtype=torch.int32, device=device)
    offsets = torch.empty(num_experts + 1, dtype=torch.int32, device=device)
    _choose[(triton.cdiv(tokens, _TOKENS),)](
        scores.contiguous(),
        per_expert_scale,
        weights,
        experts,
        tokens,
        **_choice(num_experts, top_k),
        num_warps=_TOKENS,
    )
    _sort[(num_experts + 1,)](
        experts, order, offsets, tokens * top_k, ASSIGNMENTS=_ASSIGNMENTS, num_warps=8
    )
    return Routed(weights, experts, order, offsets)


def _choice(num_experts: int, top_k: int) -> dict[str, int]:
    return {
        "E": num_experts,
        "TOP_K": top_k,
        "PADDED_E": triton.next_power_of_2(num_experts),
        "PADDED_K": triton.next_power_of_2(top_k),
        "TOKENS": _TOKENS,
    }


def variants(geometry: Geometry, chip: Chip) -> Iterator[Variant]:
    """The same on every chip."""
    yield Variant(
        "routing.choose",
        _choose,
        {
            "scores": "*bf16",
            "scale": "*fp32",
            "weights": "*fp32",
            "experts": "*i32",
            "T": "i32",
        },
        _choice(geometry.num_experts, geometry.top_k_experts),
        aligned=frozenset({"T"}),
        num_warps=_TOKENS,
        hot=False,
    )
    yield Variant(
        "routing.sort",
        _sort,
        {"experts": "*i32", "order": "*i32", "offsets": "*i32", "assignments": "i32"},
        {"ASSIGNMENTS": _ASSIGNMENTS},
        aligned=frozenset({"assignments"}),
        num_warps=8,
        hot=False,
    )
