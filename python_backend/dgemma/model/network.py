"""The whole network as one pure function of a pass: rows in, hidden states and fresh K/V out.

Knows both modes and chooses one per row; knows neither logits, sampling, nor who owns the KV.
Shapes: R rows, L row length (the canvas), D hidden size, G K/V heads, d head size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dgemma.geometry import Geometry, LayerGeometry
from dgemma.model import fused
from dgemma.model.attention import Attention, Keys, RowIndex, build_keys
from dgemma.model.experts import Experts, Router
from dgemma.model.layers import GatedMLP, RMSNorm, SelfConditioning


class Layer(nn.Module):
    """One layer; `layer_scalar` serves denoise rows, `encoder_layer_scalar` encode rows."""

    def __init__(self, g: Geometry, layer: LayerGeometry, fused: bool) -> None:
        super().__init__()
        d, eps = g.hidden_size, g.rms_norm_eps
        self.fused = fused
        self.self_attn = Attention(g, layer)
        self.mlp = GatedMLP(d, g.intermediate_size)
        self.router = Router(g)
        self.experts = Experts(g)
        self.input_layernorm = RMSNorm(d, eps)
        self.post_attention_layernorm = RMSNorm(d, eps)
        self.pre_feedforward_layernorm = RMSNorm(d, eps)
        self.post_feedforward_layernorm = RMSNorm(d, eps)
        self.pre_feedforward_layernorm_2 = RMSNorm(d, eps)
        self.post_feedforward_layernorm_1 = RMSNorm(d, eps)
        self.post_feedforward_layernorm_2 = RMSNorm(d, eps)
        self.layer_scalar = nn.Parameter(torch.ones(1))
        self.encoder_layer_scalar = nn.Parameter(torch.ones(1))

    def forward(
        self, x: Tensor, keys: Keys, denoise: Tensor, pool_k: Tensor, pool_v: Tensor, room: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`x [R, L, D]` after the layer, its fresh K and V, and the largest expert load."""
        h = self.input_layernorm(x)
        project = fused.project if self.fused else Attention.project
        q, k, v = project(self.self_attn, h, keys)
        attended = self.self_attn(q, k, v, keys, pool_k, pool_v)
        x = x + self.post_attention_layernorm(attended)
        mixed, load = self.feed_forward(x, room)
        x = x + self.post_feedforward_layernorm(mixed)
        scalar = torch.where(denoise[:, None, None], self.layer_scalar, self.encoder_layer_scalar)
        return x * scalar, k, v, load

    def feed_forward(self, x: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
        """The dense and the routed feed-forward of `x [R, L, D]`, and the largest expert load."""
        dense = (self.pre_feedforward_layernorm, self.mlp, self.post_feedforward_layernorm_1)
        routed = (
            self.pre_feedforward_layernorm_2,
            self.experts,
            self.post_feedforward_layernorm_2,
        )
        if self.fused:
            mixed = fused.feed_forward(x, dense, routed, self.router)
            return mixed, torch.zeros((), dtype=torch.int64)  # no expert has a capacity here
        before, mlp, after = dense
        tokens = x.flatten(0, 1)  # [R * L, D]
        weights, chosen = self.router(tokens)
        out, load = self.experts(routed[0](tokens), weights, chosen, room)
        out = routed[2](out).unflatten(0, (x.shape[0], -1))
        return after(mlp(before(x))) + out, load


class Network(nn.Module):
    """DiffusionGemma's decoder and text encoder, which share all weights but one scalar a layer."""

    embed_scale: Tensor
    sliding_frequencies: Tensor
    full_frequencies: Tensor

    def __init__(self, geometry: Geometry, fused: bool = False) -> None:
        """`fused` computes the same in fewer operations; see `dgemma.model.fused`."""
        super().__init__()
        g = self.geometry = geometry
        self.embed_tokens = nn.Embedding(g.vocab_size, g.hidden_size)
        self.layers = nn.ModuleList(Layer(g, layer, fused) for layer in g.layers)
        self.norm = RMSNorm(g.hidden_size, g.rms_norm_eps)
        self.self_conditioning = SelfConditioning(
            g.hidden_size, g.intermediate_size, g.rms_norm_eps
        )
        # Of one element: the exporter's optimiser loses a product with a constant scalar.
        root = torch.tensor([math.sqrt(g.hidden_size)], device="cpu")
        self.register_buffer("embed_scale", root, persistent=False)
        for full, name in ((False, "sliding_frequencies"), (True, "full_frequencies")):
            dim = next((x.head_dim for x in g.layers if x.is_full == full), 2)
            rope = g.full_rope if full else g.sliding_rope
            table = torch.tensor(rope.inverse_frequencies(dim), device="cpu")
            self.register_buffer(name, table, persistent=False)

    def forward(
        self, ids: Tensor, soft: Tensor, rows: RowIndex, room: Tensor, pools: list[Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Last hidden states `[R, L, D]`, the largest expert load, and fresh K, V per layer.

        `ids` int64 `[R, L]`; `soft` `[R, L, D]`, zero where a canvas has no previous step;
        `room` `arange(C)`; `pools` K then V of each layer, `[slots, G, W or N, d]`, or of a share
        what its rows attend to, `[R, G, S, d]`, in which its own tokens may be missing.
        """
        if rows.tokens is not None:  # a share: of hidden states and fresh K, V, [R, T] are given
            ids, soft = ids.index_select(1, rows.tokens), soft.index_select(1, rows.tokens)
        x, load, fresh = self.pass_layers(self.enter(ids, soft, rows.denoise), rows, room, pools)
        return self.norm(x), load, fresh

    def enter(self, ids: Tensor, soft: Tensor, denoise: Tensor) -> Tensor:
        """What enters the layers, `[R, L, D]`."""
        # HF rounds the scale to the weights' dtype: 53.0 and not 53.07 in BF16.
        embedded = self.embed_tokens(ids) * self.embed_scale.to(soft.dtype)
        mixed = self.self_conditioning.mix(embedded, soft)
        return torch.where(denoise[:, None, None], mixed, embedded)

    def pass_layers(
        self, x: Tensor, rows: RowIndex, room: Tensor, pools: list[Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """What leaves the layers that `x [R, L, D]` entered, the largest load, and fresh K, V."""
        keys: dict[LayerGeometry, Keys] = {}
        fresh: list[Tensor] = []
        loads: list[Tensor] = []
        for i, (layer, geometry) in enumerate(zip(self.layers, self.geometry.layers, strict=True)):
            pool_k, pool_v = pools[2 * i], pools[2 * i + 1]
            if geometry not in keys:
                table = self.full_frequencies if geometry.is_full else self.sliding_frequencies
                keys[geometry] = build_keys(self.geometry, geometry, rows, pool_k.shape[2], table)
            x, k, v, load = layer(x, keys[geometry], rows.denoise, pool_k, pool_v, room)
            fresh += [k, v]
            loads.append(load)
        return x, torch.stack(loads).amax(0), fresh
