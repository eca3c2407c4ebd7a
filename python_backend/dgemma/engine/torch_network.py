"""The network as a sequence of operations on device memory: a pass of rows that stand in pools.

Knows the order of the operations and which weights each takes; knows neither slots' owners, graphs
nor how an operation is computed. The algebra is `dgemma.model.network`'s, cut where activations
cross memory.
Shapes: R rows of L tokens, T = R * L, D hidden size, G K/V heads, d head size, W or N positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgemma.engine.kernels.operands import Lines, Weight
from dgemma.engine.kernels.rows import PassRows
from dgemma.engine.operations import Operations
from dgemma.engine.torch_weights import FeedForward, LayerWeights, NetworkWeights
from dgemma.geometry import Geometry


@dataclass(frozen=True)
class TorchNetwork:
    """On one device; `pools` are K then V of each layer, `[slots, G, W or N, d]`."""

    geometry: Geometry
    weights: NetworkWeights
    pools: Sequence[Tensor]
    operations: Operations
    frequencies: tuple[Tensor, Tensor]  # fp32 [d / 2] of sliding layers, of full ones

    @classmethod
    def of(
        cls,
        geometry: Geometry,
        weights: NetworkWeights,
        pools: Sequence[Tensor],
        operations: Operations,
    ) -> TorchNetwork:
        sliding, full = (
            torch.tensor(
                (geometry.full_rope if is_full else geometry.sliding_rope).inverse_frequencies(
                    next((x.head_dim for x in geometry.layers if x.is_full == is_full), 2)
                ),
                device=weights.embedding.device,
            )
            for is_full in (False, True)
        )
        return cls(geometry, weights, pools, operations, (sliding, full))

    def forward(self, ids: Tensor, soft: Tensor, rows: PassRows, context: int) -> Tensor:
        """Last hidden states `[T, D]` of ids `[T]` and soft embeddings `[T, D]`.

        No row has more than `context` tokens before it. K/V of encode rows are written to the
        pools; nothing on the device is read by the host.
        """
        ops, w, eps = self.operations, self.weights, self.geometry.rms_norm_eps
        x = self._enter(ids, soft, rows)
        tables = [ops.rotary_table(rows, frequencies) for frequencies in self.frequencies]
        scalars = torch.where(rows.denoise, w.scalars[:, :1], w.scalars[:, 1:])  # [layers, R]
        h = ops.normed(x, w.layers[0].input_norm, eps, takes_fp8(w.layers[0].qkv))
        # Each layer ends with the norm that what follows begins with.
        following = [(layer.input_norm, takes_fp8(layer.qkv)) for layer in w.layers[1:]]
        following.append((w.norm, False))
        for index, layer in enumerate(w.layers):
            table = tables[layer.geometry.is_full]
            x, dense, routed, scored = ops.after_attention(
                x,
                self._attention(index, layer, h, table, rows, context),
                layer.post_attention_norm,
                layer.pre_dense_norm,
                layer.pre_routed_norm,
                layer.router_scale,
                eps,
                fp8_dense=takes_fp8(layer.dense.gate_up),
                fp8_routed=takes_fp8(layer.experts.gate_up),
            )
            x, h = ops.after_feed_forward(
                x,
                self._dense(layer.dense, dense),
                self._experts(layer, routed, scored),
                layer.post_dense_norm,
                layer.post_routed_norm,
                layer.post_norm,
                scalars[index],
                following[index][0],
                eps,
                following[index][1],
            )
        return h.values

    def _enter(self, ids: Tensor, soft: Tensor, rows: PassRows) -> Tensor:
        ops, w, eps = self.operations, self.weights, self.geometry.rms_norm_eps
        given = ops.normed(soft, w.conditioning_norm, eps, takes_fp8(w.conditioning.gate_up))
        conditioned = self._dense(w.conditioning, given)
        root = math.sqrt(self.geometry.hidden_size)
        return ops.entered(ids, w.embedding, root, conditioned, rows.denoise, eps)

    def _attention(
        self,
        index: int,
        layer: LayerWeights,
        h: Lines,
        table: Tensor,
        rows: PassRows,
        context: int,
    ) -> Tensor:
        """What the output projection gives, `[T, D]`."""
        ops, g = self.operations, self.geometry
        window = None if layer.geometry.is_full else g.sliding_window
        pools = self.pools[2 * index], self.pools[2 * index + 1]
        q, k, v = ops.normed_heads(
            ops.linear(h, layer.qkv),
            layer.q_norm,
            layer.k_norm,
            table,
            heads=g.num_attention_heads,
            groups=layer.geometry.num_key_value_heads,
            eps=g.rms_norm_eps,
        )
        fp8 = takes_fp8(layer.o)
        mixed = ops.attend(q, k, v, *pools, rows, window=window, context=context, fp8=fp8)
        # Only behind it: a ring's oldest entries make room for what this pass keeps.
        ops.keep(k, v, *pools, rows, window=window)
        return ops.linear(mixed, layer.o)

    def _dense(self, weights: FeedForward, x: Lines) -> Tensor:
        ops = self.operations
        return ops.linear(
            self._for(weights.down, ops.gated_linear(x, weights.gate_up)), weights.down
        )

    def _experts(self, layer: LayerWeights, x: Lines, router: Tensor) -> Tensor:
        """Weighted outputs of each token's experts, `[T, k, D]`."""
        ops = self.operations
        scores = ops.linear(Lines(router), layer.router)
        routed = ops.route(scores, self.geometry.top_k_experts, layer.per_expert_scale)
        inner = ops.gate_up(x, layer.experts.gate_up, routed)
        return ops.down(self._for(layer.experts.down, inner), layer.experts.down, routed)

    def _for(self, weight: Weight, x: Tensor) -> Lines:
        """Activations `[M, K]` as a product with `weight` takes them."""
        return self.operations.quantize_rows(x) if takes_fp8(weight) else Lines(x)


def takes_fp8(weight: Weight) -> bool:
    """Whether a product multiplies in FP8, and rounds activations for it, token by token."""
    return weight.format.name == "fp8"
