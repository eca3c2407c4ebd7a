"""The network's weights in device memory, as the operations of a pass take them.

Knows which of them are multiplied together, and lays those side by side so that one product serves
all; knows neither files nor kernels.
Shapes: D hidden size, H query heads, G K/V heads, d head size, E experts, I width of a
feed-forward, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgemma.engine.binding_plan import Arena
from dgemma.engine.device_memory import view
from dgemma.engine.kernels.operands import Weight
from dgemma.geometry import Geometry, LayerGeometry
from dgemma.model.checkpoint import parameter_shapes
from dgemma.precision import BLOCK_SCALE, ROW_SCALE, Policy

_ATTENTION = tuple(f"self_attn.{name}_proj.weight" for name in "qkv")
_GATES = ("gate_proj.weight", "up_proj.weight")


@dataclass(frozen=True)
class FeedForward:
    """A gated feed-forward, or E of them."""

    gate_up: Weight  # [.., 2I, D], gate rows first
    down: Weight  # [.., D, I]


@dataclass(frozen=True)
class LayerWeights:
    """One layer; norms in the store's dtype."""

    geometry: LayerGeometry
    qkv: Weight  # [(H + 2G) * d, D]; [(H + G) * d, D] where values are raw keys
    o: Weight  # [D, H * d]
    q_norm: Tensor  # [d]
    k_norm: Tensor  # [d]
    dense: FeedForward
    experts: FeedForward
    router: Weight  # [E, D]
    router_scale: Tensor  # fp32 [D], of the router's own norm
    per_expert_scale: Tensor  # fp32 [E]
    input_norm: Tensor  # [D], as the six others
    post_attention_norm: Tensor
    pre_dense_norm: Tensor
    pre_routed_norm: Tensor
    post_dense_norm: Tensor
    post_routed_norm: Tensor
    post_norm: Tensor


@dataclass(frozen=True)
class NetworkWeights:
    """All of them."""

    embedding: Tensor  # [V, D]
    norm: Tensor  # [D], the last one
    conditioning_norm: Tensor  # [D]
    conditioning: FeedForward
    layers: tuple[LayerWeights, ...]
    scalars: Tensor  # fp32 [layers, 2], of denoise rows and of encode rows


def arena_of(geometry: Geometry, policy: Policy) -> Arena:
    """Places for every tensor of a store, those of one product beside each other."""
    shapes, places = parameter_shapes(geometry), []
    for group in _groups(shapes):
        parts = [policy.tensors({name: shapes[name]}) for name in group]
        for suffix in ("", BLOCK_SCALE, ROW_SCALE):
            for name, part in zip(group, parts, strict=True):
                if (spec := part.get(name + suffix)) is not None:
                    places.append((name + suffix, spec.dtype, spec.shape))
    return Arena.of(places)


def _groups(names: Mapping[str, object]) -> Iterator[tuple[str, ...]]:
    """Every name once; those that one product reads stand together."""
    grouped: set[str] = set()
    for name in names:
        if name in grouped:
            continue
        group = next((g for g in (_ATTENTION, _GATES) if name.endswith(g[0])), None)
        stem = name.removesuffix(group[0]) if group else ""
        together = tuple(stem + n for n in group if stem + n in names) if group else (name,)
        grouped.update(together)
        yield together


class WeightReader:
    """Tensors and weights of an arena by the network's names."""

    def __init__(self, geometry: Geometry, policy: Policy, arena: Arena, memory: Tensor) -> None:
        self.geometry, self.policy = geometry, policy
        self._arena, self._memory = arena, memory

    def tensor(self, name: str) -> Tensor:
        return view(self._arena, self._memory, name)

    def weight(self, *names: str) -> Weight:
        """One weight; several, of one format, as one with their rows below each other."""
        format = self.policy.format_of(names[0])

        def part(suffix: str) -> Tensor | None:
            if names[0] + suffix not in self._arena.places:
                return None
            return stacked([self.tensor(name + suffix) for name in names])

        payload = part("")
        assert payload is not None, "every parameter has a place"
        return Weight(format, payload, part(BLOCK_SCALE), part(ROW_SCALE))

    def network(self) -> NetworkWeights:
        """All of them, as the operations take them; joined ones may be copies."""
        layers = range(len(self.geometry.layers))
        scalars = [
            torch.cat([self.tensor(f"layers.{i}.{n}") for n in _SCALARS]).float() for i in layers
        ]
        return NetworkWeights(
            embedding=self.tensor("embed_tokens.weight"),
            norm=self.tensor("norm.weight"),
            conditioning_norm=self.tensor("self_conditioning.pre_norm.weight"),
            conditioning=self._gated("self_conditioning."),
            layers=tuple(map(self._layer, layers)),
            scalars=torch.stack(scalars),
        )

    def _gated(self, prefix: str) -> FeedForward:
        gate_up = self.weight(*(prefix + name for name in _GATES))
        return FeedForward(gate_up, self.weight(prefix + "down_proj.weight"))

    def _layer(self, index: int) -> LayerWeights:
        g, prefix = self.geometry, f"layers.{index}."
        layer = g.layers[index]

        def norm(name: str) -> Tensor:
            return self.tensor(f"{prefix}{name}.weight")

        attention = _ATTENTION[:2] if layer.is_full else _ATTENTION
        scale = self.tensor(prefix + "router.scale") * g.hidden_size**-0.5
        return LayerWeights(
            geometry=layer,
            qkv=self.weight(*(prefix + name for name in attention)),
            o=self.weight(prefix + "self_attn.o_proj.weight"),
            q_norm=norm("self_attn.q_norm"),
            k_norm=norm("self_attn.k_norm"),
            dense=self._gated(prefix + "mlp."),
            experts=FeedForward(
                self.weight(prefix + "experts.gate_up_proj"),
                self.weight(prefix + "experts.down_proj"),
            ),
            router=self.weight(prefix + "router.proj.weight"),
            router_scale=scale.float(),
            per_expert_scale=self.tensor(prefix + "router.per_expert_scale").float(),
            input_norm=norm("input_layernorm"),
            post_attention_norm=norm("post_attention_layernorm"),
            pre_dense_norm=norm("pre_feedforward_layernorm"),
            pre_routed_norm=norm("pre_feedforward_layernorm_2"),
            post_dense_norm=norm("post_feedforward_layernorm_1"),
            post_routed_norm=norm("post_feedforward_layernorm_2"),
            post_norm=norm("post_feedforward_layernorm"),
        )


_SCALARS = ("layer_scalar", "encoder_layer_scalar")


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Tensors below each other: without a copy where they lie so in memory."""
    first, at = parts[0], parts[0].data_ptr()
    for part in parts:
        if part.data_ptr() != at:
            return torch.cat(list(parts))
        at += part.nbytes
    rows = sum(part.shape[0] for part in parts)
    return first.as_strided((rows, *first.shape[1:]), first.stride())
