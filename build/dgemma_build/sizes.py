"""How many bytes a network's weights and K/V are, and how many of them a pass must move.

Knows a geometry, a policy and the width of an activation, and computes; knows nothing of GPUs.
Shapes: W sliding window, G K/V heads, d head size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from dgemma.geometry import Geometry
from dgemma.model.checkpoint import parameter_shapes
from dgemma.precision import Policy, policy_of

EMBEDDING = "embed_tokens.weight"
_PARTS = {".experts.": "experts", ".self_attn.": "attention", ".mlp.": "dense MLPs"}


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
    def dequantized_banks(self) -> tuple[int, ...]:
        """A layer's banks that are widened before they are multiplied by, the largest first."""
        banks = (n for n in self.shapes if n.startswith("layers.0.experts.") and self._widens(n))
        sizes = (self.activation_bytes * math.prod(self.shapes[name]) for name in banks)
        return tuple(sorted(sizes, reverse=True))

    def _widens(self, name: str) -> bool:
        """On GPUs fp8 meets activations in fp8, and its products take it as it is stored."""
        format = self.policy.format_of(name)
        return format.is_quantized and (format.name != "fp8" or self.activation_bytes > 2)


@lru_cache(8)
def _shapes(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    return parameter_shapes(geometry)


@dataclass(frozen=True)
class KVBytes:
    """Keys and values of one slot."""

    sliding: int
    full: int

    @property
    def total(self) -> int:
        return self.sliding + self.full


def kv_bytes(model: Model, context: int, tokens: int | None = None) -> KVBytes:
    """What a slot of `context` tokens takes; with `tokens`, what a row reads that has so many.

    Sliding layers are rings of W positions whatever the context, of which a short row fills a part.
    """
    window = model.geometry.sliding_window
    ring, line = (window, context) if tokens is None else (min(window, tokens), tokens)
    sizes = {True: 0, False: 0}
    for layer in model.geometry.layers:
        position = 2 * layer.num_key_value_heads * layer.head_dim * model.activation_bytes
        sizes[layer.is_full] += position * (line if layer.is_full else ring)
    return KVBytes(sizes[False], sizes[True])


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
    """Of a pass over `rows` canvases with `tokens` of context each.

    A canvas of 256 tokens, 8 experts each, meets practically every one of 128 experts, so one row
    reads all weights already, and more rows read no more.
    """
    kv = rows * kv_bytes(model, tokens, tokens).total
    return PassBytes(model.weight_bytes, model.embedding_bytes, kv, gather=2 * kv)
