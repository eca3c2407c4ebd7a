from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dgemma.model.experts import Experts, Router, places
from dgemma.model.fused import feed_forward, shares
from dgemma.model.layers import gelu
from dgemma.model.network import Layer
from tests.dgemma.engine.fake_engine import geometry_of
from tests.dgemma.model.tiny_weights import random_network

GEOMETRY = geometry_of(hidden_size=12)  # 4 experts, 2 a token, 8 wide
D, E = 12, 4


def first_layer() -> Layer:
    layer = random_network(GEOMETRY).layers[0]
    assert isinstance(layer, Layer)
    return layer


LAYER = first_layer()
BANK: Experts = LAYER.experts
ROUTER: Router = LAYER.router


def assignments(tokens: int, top_k: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, D, generator=generator)
    chosen = torch.stack([torch.randperm(E, generator=generator)[:top_k] for _ in range(tokens)])
    return x, torch.rand(tokens, top_k, generator=generator), chosen


def token_by_token(x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
    """The definition: each token's weighted sum over its experts."""
    out = torch.zeros_like(x)
    for token in range(len(x)):
        for weight, expert in zip(weights[token], experts[token].tolist(), strict=True):
            gate, up = (BANK.gate_up_proj[expert] @ x[token]).chunk(2)
            out[token] += weight * (BANK.down_proj[expert] @ (gelu(gate) * up))
    return out


def most(experts: Tensor) -> int:
    """The load of the busiest expert."""
    return int(torch.bincount(experts.flatten(), minlength=E).max())


# Capacity


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 24), st.integers(1, 3), st.integers(0, 1000), st.integers(0, 10))
def test_dispatch_with_capacity_is_the_weighted_sum_over_a_tokens_experts(
    tokens: int, top_k: int, seed: int, spare: int
) -> None:
    x, weights, experts = assignments(tokens, top_k, seed)
    out, load = BANK(x, weights, experts, torch.arange(most(experts) + spare))
    assert int(load) == most(experts)
    wanted = token_by_token(x, weights, experts)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)


def test_the_load_says_when_the_capacity_was_too_small() -> None:
    x, weights, _ = assignments(10, 1, 0)
    crowded = torch.full((10, 1), 2)
    for room in (1, 5, 9):
        _, load = BANK(x, weights, crowded, torch.arange(room))
        assert int(load) == 10
    out, load = BANK(x, weights, crowded, torch.arange(10))
    assert int(load) == 10
    torch.testing.assert_close(out, token_by_token(x, weights, crowded), rtol=1e-4, atol=1e-5)


def test_a_token_without_room_displaces_no_other() -> None:
    x, weights, experts = assignments(12, 2, 1)
    wanted = token_by_token(x, weights, experts)
    out, load = BANK(x, weights, experts, torch.arange(3))
    place, _ = places(experts, E)
    served = (place.view(12, 2) < 3).all(1)
    assert 0 < int(served.sum()) < 12 and int(load) > 3
    torch.testing.assert_close(out[served], wanted[served], rtol=1e-4, atol=1e-5)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(0, E - 1), min_size=1, max_size=40))
def test_queues_are_in_token_order(experts: list[int]) -> None:
    place, load = places(torch.tensor(experts)[:, None], E)
    assert place.tolist() == [experts[:index].count(e) for index, e in enumerate(experts)]
    assert int(load) == max(experts.count(expert) for expert in range(E))


# The router


@pytest.mark.parametrize("count", [1, 7])
def test_the_router_weighs_the_best_experts_and_scales_each(count: int) -> None:
    x = torch.randn(count, D, generator=torch.Generator().manual_seed(4))
    weights, experts = ROUTER(x)
    normed = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    p = ((normed * ROUTER.scale * D**-0.5) @ ROUTER.proj.weight.T).softmax(-1)
    best = p.topk(2)
    assert torch.equal(experts, best.indices)
    wanted = best.values / best.values.sum(-1, keepdim=True)
    wanted = wanted * ROUTER.per_expert_scale[best.indices]
    torch.testing.assert_close(weights, wanted, rtol=1e-4, atol=1e-6)


def test_dense_shares_are_the_routers_weights_in_place() -> None:
    x = torch.randn(9, D, generator=torch.Generator().manual_seed(5))
    weights, experts = ROUTER(x)
    normed = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    got = shares(ROUTER, (normed * ROUTER.norm_scale) @ ROUTER.proj.weight.T)
    scaled = got * ROUTER.per_expert_scale  # which `feed_forward` folds into the experts' weights
    torch.testing.assert_close(scaled, torch.zeros(9, E).scatter(1, experts, weights))


# Every expert for every token


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(0, 1000))
def test_dispatch_with_capacity_equals_dense(rows: int, seed: int) -> None:
    x = torch.randn(rows, 8, D, generator=torch.Generator().manual_seed(seed))
    gathered, load = LAYER.feed_forward(x, torch.arange(rows * 8))
    assert 0 < int(load) <= rows * 8
    dense = feed_forward(
        x,
        (LAYER.pre_feedforward_layernorm, LAYER.mlp, LAYER.post_feedforward_layernorm_1),
        (LAYER.pre_feedforward_layernorm_2, BANK, LAYER.post_feedforward_layernorm_2),
        ROUTER,
    )
    torch.testing.assert_close(gathered, dense, rtol=1e-4, atol=1e-5)
