"""Routing on the device against plain torch, and the router's algebra against the network's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from dgemma.engine.kernels import routing, routing_reference
from dgemma.engine.kernels.routed import Routed

Route = Callable[[Tensor, int, Tensor], Routed]
both = pytest.mark.parametrize("route", [routing.route, routing_reference.route])


def _scale(num_experts: int) -> Tensor:
    return torch.rand(num_experts) + 0.5


@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k", "dtype"),
    [
        (1, 4, 2, torch.float32),
        (7, 5, 3, torch.float32),
        (33, 6, 6, torch.bfloat16),
        (256, 128, 8, torch.bfloat16),
        (600, 128, 8, torch.bfloat16),  # more than one round of the scan
    ],
)
def test_equals_plain_torch(tokens: int, num_experts: int, top_k: int, dtype: torch.dtype) -> None:
    torch.manual_seed(tokens)
    scores, scale = torch.randn(tokens, num_experts).to(dtype), _scale(num_experts)
    got = routing.route(scores, top_k, scale)
    wanted = routing_reference.route(scores, top_k, scale)
    assert torch.equal(got.experts, wanted.experts)
    assert torch.equal(got.order, wanted.order)
    assert torch.equal(got.offsets, wanted.offsets)
    torch.testing.assert_close(got.weights, wanted.weights, rtol=1e-5, atol=0)
    for name in ("weights", "experts", "order", "offsets"):
        assert getattr(got, name).dtype == getattr(wanted, name).dtype


@both
def test_is_the_router_of_the_network(route: Route) -> None:
    torch.manual_seed(0)
    scores, scale = torch.randn(20, 16), _scale(16)  # no two of a token are equal
    weights, experts = torch.softmax(scores, -1).topk(4, -1)
    weights = weights / weights.sum(-1, keepdim=True) * scale[experts]
    got = route(scores, 4, scale)
    assert torch.equal(got.experts.long(), experts)
    torch.testing.assert_close(got.weights, weights, rtol=1e-5, atol=0)


@both
def test_the_first_of_equals_is_chosen(route: Route) -> None:
    scores = torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    got = route(scores, 4, torch.ones(5))
    assert got.experts.tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]


@both
def test_all_tokens_at_the_same_experts(route: Route) -> None:
    scores = torch.zeros(9, 8)
    scores[:, [2, 7]] = torch.tensor([5.0, 4.0])
    got = route(scores, 2, torch.ones(8))
    assert got.offsets.tolist() == [0, 0, 0, 9, 9, 9, 9, 9, 18]
    assert got.order.tolist() == [*range(0, 18, 2), *range(1, 18, 2)]


@both
def test_a_token_chooses_the_same_alone(route: Route) -> None:
    torch.manual_seed(1)
    scores, scale = torch.randn(12, 10).bfloat16(), _scale(10)
    among, alone = route(scores, 3, scale), route(scores[5:6], 3, scale)
    assert torch.equal(among.weights[5:6], alone.weights)
    assert torch.equal(among.experts[5:6], alone.experts)


def test_what_is_no_number_stays_within_the_bank() -> None:
    scores = torch.full((5, 6), float("nan"))
    with np.errstate(invalid="ignore"):  # the interpreter's
        got = routing.route(scores, 3, torch.ones(6))
    assert int(got.experts.min()) >= 0
    assert int(got.experts.max()) < 6
    assert sorted(got.order.tolist()) == list(range(15))
