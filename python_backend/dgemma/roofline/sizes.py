"""How many bytes a network's weights and K/V are, and how many of them a pass must read.

Knows a geometry, a policy and the width of an activation, and computes; knows nothing of GPUs.
Shapes: W sliding window, G K/V heads, d head size, T tokens of a pass, E experts, k a token's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from dgemma.geometry import Geometry
from dgemma.model.checkpoint import parameter_shapes
from dgemma.precision import Policy, policy_of

EMBEDDING = "embed_tokens.weight"
_PARTS = {".experts.": "experts", ".self_attn.": "attention", ".mlp.": "dense MLPs"}


@dataclass(frozen=True)
class KVBytes:
    """Keys and values, by kind of layer."""

    sliding: int
    full: int

    @property
    def total(self) -> int:
        return self.sliding + self.full


@dataclass(frozen=True)
class Model:
    """What an engine computes with: a geometry, its weights' formats and its activations' width."""

    geometry: Geometry
    policy: Policy
    activation_bytes: int = 2  # BF16; 4 where a target computes in fp32

    @classmethod
    def of(
        cls,
        geometry: Geometry,
        precision: str,
        policy: str | None = None,
        flavour: str = "tensorrt",
    ) -> Model:
        """As an engine of `flavour` holds it; onnxruntime multiplies no BF16 on a host.

        Raises ConfigurationError for a precision or policy that does not exist.
        """
        chosen = policy_of(precision, policy)
        if flavour != "onnxruntime":
            return cls(geometry, chosen, 4 if chosen.rest == "fp32" else 2)
        return cls(geometry, replace(chosen, rest="fp32"), 4)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return _shapes(self.geometry)

    @cached_property
    def tensor_bytes(self) -> dict[str, int]:
        """Bytes of every tensor of the weight store, scales included."""
        return {name: spec.nbytes for name, spec in self.policy.tensors(self.shapes).items()}

    @cached_property
    def weight_bytes(self) -> int:
        return sum(self.tensor_bytes.values())

    @cached_property
    def weight_parts(self) -> dict[str, int]:
        """The same by part of the network."""
        parts = dict.fromkeys(("experts", "attention", "dense MLPs", "embedding", "other"), 0)
        for name, size in self.tensor_bytes.items():
            found = (part for mark, part in _PARTS.items() if mark in name)
            part = "embedding" if name == EMBEDDING else next(found, "other")
            parts[part] += size
        return parts

    @property
    def embedding_bytes(self) -> int:
        return self.tensor_bytes[EMBEDDING]

    @cached_property
    def position(self) -> KVBytes:
        """Keys and values of one position in all layers of a kind."""
        sizes = {True: 0, False: 0}
        for layer in self.geometry.layers:
            width = layer.num_key_value_heads * layer.head_dim * self.activation_bytes
            sizes[layer.is_full] += 2 * width
        return KVBytes(sizes[False], sizes[True])

    @cached_property
    def dequantized_banks(self) -> tuple[int, ...]:
        """A layer's banks that are widened before they are multiplied by, the largest first."""
        banks = (n for n in self.shapes if n.startswith("layers.0.experts.") and self._widens(n))
        sizes = (self.activation_bytes * math.prod(self.shapes[name]) for name in banks)
        return tuple(sorted(sizes, reverse=True))

    def multiplies_in_fp8(self, name: str) -> bool:
        """On GPUs fp8 meets activations in fp8, and its products take it as it is stored."""
        return self.policy.format_of(name).name == "fp8" and self.activation_bytes <= 2

    def _widens(self, name: str) -> bool:
        return self.policy.format_of(name).is_quantized and not self.multiplies_in_fp8(name)


@lru_cache(8)
def _shapes(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    return parameter_shapes(geometry)


def kv_bytes(model: Model, context: int, tokens: int | None = None) -> KVBytes:
    """What a slot of `context` tokens takes; with `tokens`, what a row reads that has so many.

    Sliding layers are rings of W positions whatever the context, of which a short row fills a part.
    """
    window = model.geometry.sliding_window
    ring, line = (window, context) if tokens is None else (min(window, tokens), tokens)
    position = model.position
    return KVBytes(position.sliding * ring, position.full * line)


@dataclass(frozen=True)
class PassBytes:
    """What a pass must read at least, and what copying contexts out of the pools adds to it."""

    weights: int
    embedding: int  # the second reading: the LM head has the first, the soft embedding this one
    kv: int
    gather: int

    @property
    def floor(self) -> int:
        return self.weights + self.embedding + self.kv


def pass_bytes(model: Model, rows: int, tokens: int) -> PassBytes:
    """Of a pass over `rows` canvases with `tokens` of context each."""
    return bytes_of(model, [tokens] * rows, rows)


def bytes_of(model: Model, contexts: Sequence[int], denoising: int) -> PassBytes:
    """Of a pass over rows with so many tokens of context, of which some are `denoising`.

    Only these have logits and a soft embedding. Of the experts those are read that a token is
    routed to: all but one in ten million of the published model's, already with one row.
    """
    tokens = len(contexts) * model.geometry.canvas_length
    untouched = round(model.weight_parts["experts"] * (1 - coverage(model.geometry, tokens)))
    embedding = model.embedding_bytes if denoising else 0
    weights = model.weight_bytes - untouched - (model.embedding_bytes - embedding)
    window = model.geometry.sliding_window
    rings = model.position.sliding * sum(min(window, context) for context in contexts)
    kv = rings + model.position.full * sum(contexts)
    return PassBytes(weights, embedding, kv, gather=2 * kv)


def coverage(geometry: Geometry, tokens: int) -> float:
    """The share of a layer's experts that T tokens meet, where each chooses k of E evenly."""
    return float(1 - (1 - geometry.top_k_experts / geometry.num_experts) ** tokens)
