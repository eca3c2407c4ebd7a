from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma.engine.kernels import norms_reference as norms
from dgemma.model.attention import Attention
from dgemma.model.layers import gelu
from dgemma.model.network import Layer
from tests.dgemma.engine.fake_engine import geometry_of
from tests.dgemma.model.tiny_weights import random_network

GEOMETRY = geometry_of(hidden_size=24, vocab_size=50)
EPS = GEOMETRY.rms_norm_eps
ROWS, LENGTH = 3, GEOMETRY.canvas_length
DENOISE = torch.tensor([True, False, True])


def rows_of(width: int) -> Tensor:
    return torch.randn(ROWS, LENGTH, width)


def test_a_layer_of_the_network_is_its_products_and_these(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(self: Attention, h: Tensor, *others: Any) -> Tensor:
        return h.roll(1, 1) * 2 + 1

    monkeypatch.setattr(Attention, "project", lambda self, h, keys: (h, h, h))
    monkeypatch.setattr(Attention, "forward", attend)
    network = random_network(GEOMETRY)
    layer = network.layers[0]
    x, nothing = rows_of(GEOMETRY.hidden_size), torch.zeros(0)
    room: Any = torch.arange(ROWS * LENGTH)
    wanted, h, _, _ = layer(x, nothing, DENOISE, nothing, nothing, room)

    lines = norms.normed(x.flatten(0, 1), layer.input_layernorm.weight, EPS, False)
    torch.testing.assert_close(lines.values, h.flatten(0, 1))
    attended = attend(layer.self_attn, h).flatten(0, 1)
    kept, dense, routed, router_input = norms.after_attention(
        *(x.flatten(0, 1), attended, layer.post_attention_layernorm.weight),
        *(layer.pre_feedforward_layernorm.weight, layer.pre_feedforward_layernorm_2.weight),
        *(layer.router.norm_scale, EPS),
        fp8_dense=False,
        fp8_routed=False,
    )
    out, following = norms.after_feed_forward(
        *(kept, layer.mlp(dense.values), experts(layer, routed.values, router_input)),
        layer.post_feedforward_layernorm_1.weight,
        layer.post_feedforward_layernorm_2.weight,
        layer.post_feedforward_layernorm.weight,
        torch.where(DENOISE, layer.layer_scalar, layer.encoder_layer_scalar),
        network.norm.weight,
        EPS,
        False,
    )
    torch.testing.assert_close(out, wanted.flatten(0, 1))
    torch.testing.assert_close(following.values, network.norm(wanted).flatten(0, 1))


def experts(layer: Layer, x: Tensor, router_input: Tensor) -> Tensor:
    """What each token's experts give, weighted, `[T, k, D]`."""
    router, bank = layer.router, layer.experts
    share, chosen = torch.softmax(router.proj(router_input), -1).topk(router.top_k, -1)
    share = share / share.sum(-1, keepdim=True) * router.per_expert_scale[chosen]
    gate, up = torch.einsum("td,tkid->tki", x, bank.gate_up_proj[chosen]).chunk(2, -1)
    inner = gelu(gate) * up
    return torch.einsum("tki,tkdi->tkd", inner, bank.down_proj[chosen]) * share[..., None]


def test_what_enters_the_network() -> None:
    network = random_network(GEOMETRY)
    soft = rows_of(GEOMETRY.hidden_size)
    ids = torch.randint(0, GEOMETRY.vocab_size, (ROWS, LENGTH))
    conditioning = network.self_conditioning
    before = norms.normed(soft.flatten(0, 1), conditioning.pre_norm.weight, EPS, False)
    out = norms.entered(
        *(ids.flatten(), network.embed_tokens.weight, GEOMETRY.hidden_size**0.5),
        *(conditioning(before.values), DENOISE, EPS),
    )
    torch.testing.assert_close(out, network.enter(ids, soft, DENOISE).flatten(0, 1))


def test_lines_in_fp8_are_close_to_what_they_round() -> None:
    x = torch.randn(5, 300) * torch.tensor([1e-3, 1, 1e4, 0, 7])[:, None]
    lines = norms.quantize_rows(x)
    assert lines.scale is not None
    value = lines.values.float() * lines.scale[:, None]
    # Three bits of mantissa, and below 2^-6 of 448 steps of 2^-9.
    limit = torch.maximum(x.abs() / 16, lines.scale[:, None] * 2**-10)
    assert ((value - x).abs() <= limit * 1.0001).all()
    assert (lines.values.float().abs().amax(1)[[0, 1, 2, 4]] == 448).all()
