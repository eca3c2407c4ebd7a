"""What a pass of kernels takes on a GPU beside weights and pools, by name.

Knows what each kernel hands to the next; knows neither what stays nor GPUs. Kernels read keys in
the pools and weights as they are stored, so nothing of either is copied or widened. Not measured on
a card.
Shapes: R rows, L canvas length, T = R * L tokens, D hidden size, H query heads, G K/V heads, d head
size, E experts, k experts per token, I expert width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dgemma.geometry import LayerGeometry
from dgemma.roofline.sizes import Model
from dgemma_build.envelope import Envelope

_FP32, _INT32 = 4, 4
SPLITS = 8  # of a token's keys, at most, whose partial results are merged


class Taken(NamedTuple):
    """Bytes by name; what has a phase lives only in that part of a layer."""

    name: str
    bytes: int
    phase: str


def kernel_buffers(model: Model, envelope: Envelope, all_along: str) -> Iterator[Taken]:
    """Of one pass; `all_along` is the phase of what lives in all of it."""
    g, width = model.geometry, model.activation_bytes
    tokens = envelope.rows * g.canvas_length
    line = tokens * g.hidden_size
    yield Taken("residual stream and its norm", line * (_FP32 + width), all_along)
    for layer in dict.fromkeys(g.layers):
        yield from _attention(model, tokens, layer)
    inner = tokens * g.intermediate_size
    yield Taken("dense MLP", 2 * inner * width + line * width, "dense MLP")
    picked = tokens * g.top_k_experts
    # The dense MLP's result waits; every pick's products, and the lines that go in, in fp8.
    yield Taken("experts: activations", line * width, "experts")
    yield Taken("experts: inner", 2 * picked * g.moe_intermediate_size * width, "experts")
    yield Taken("experts: results", picked * g.hidden_size * width, "experts")
    routing = tokens * g.num_experts * _FP32 + 4 * picked * _INT32
    yield Taken("experts: routing", routing, "experts")


def _attention(model: Model, tokens: int, layer: LayerGeometry) -> Iterator[Taken]:
    g, width, phase = model.geometry, model.activation_bytes, layer.layer_type
    heads, groups = g.num_attention_heads, layer.num_key_value_heads
    # Before and after their norms and rotation.
    projected = 2 * tokens * (heads + 2 * groups) * layer.head_dim * width
    yield Taken(f"{phase}: queries, keys, values", projected, phase)
    result = tokens * heads * layer.head_dim * width
    yield Taken(f"{phase}: results", result, phase)
    partial = SPLITS * (result + tokens * heads * _FP32)
    yield Taken(f"{phase}: partial results", partial, phase)
