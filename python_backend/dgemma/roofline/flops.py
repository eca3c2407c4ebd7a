"""How many floating-point operations a pass takes, by the format that its products are in.

Knows a geometry and a policy, and computes; knows nothing of GPUs. A multiplication and its
addition are two operations. Experts count for the tokens that are routed to them.
Shapes: L canvas length, D hidden size, V vocabulary, W sliding window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from dgemma.roofline.sizes import EMBEDDING, Model

_ONLY_DENOISING = "self_conditioning"


@dataclass(frozen=True)
class Flops:
    """Operations by the format of what is multiplied."""

    bf16: float = 0.0
    fp8: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.bf16 + other.bf16, self.fp8 + other.fp8)

    def __mul__(self, times: float) -> Flops:
        return Flops(self.bf16 * times, self.fp8 * times)

    @property
    def total(self) -> float:
        return self.bf16 + self.fp8


@dataclass(frozen=True)
class Arithmetic:
    """What rows of a pass cost."""

    model: Model

    @cached_property
    def token(self) -> Flops:
        """Of a token in the products with weights that every row has."""
        found = Flops()
        for name in self.model.shapes:
            if name != EMBEDDING and _ONLY_DENOISING not in name:
                found += self._product(name)
        return found

    @cached_property
    def denoised(self) -> Flops:
        """Of a token of a canvas besides: logits, soft embedding, self-conditioning."""
        geometry = self.model.geometry
        found = Flops(bf16=2 * 2 * geometry.vocab_size * geometry.hidden_size)
        for name in self.model.shapes:
            if _ONLY_DENOISING in name:
                found += self._product(name)
        return found

    @cached_property
    def _key(self) -> tuple[int, int]:
        """Of a query and one of its keys in all sliding and in all full layers."""
        g = self.model.geometry
        sizes = {True: 0, False: 0}
        for layer in g.layers:
            sizes[layer.is_full] += 2 * 2 * g.num_attention_heads * layer.head_dim
        return sizes[False], sizes[True]

    def attention(self, contexts: Sequence[int]) -> Flops:
        """Of rows behind so many tokens; kernels compute all their own keys, masked or not."""
        g = self.model.geometry
        own = len(contexts) * g.canvas_length
        sliding, full = self._key
        rings = sum(min(g.sliding_window, context) for context in contexts)
        keys = sliding * (rings + own) + full * (sum(contexts) + own)
        return Flops(bf16=g.canvas_length * keys)

    def of(self, contexts: Sequence[int], denoising: int) -> Flops:
        """Of a pass over rows with so many tokens of context, of which some are `denoising`."""
        length = self.model.geometry.canvas_length
        products = self.token * (length * len(contexts)) + self.denoised * (length * denoising)
        return products + self.attention(contexts)

    def _product(self, name: str) -> Flops:
        shape, g = self.model.shapes[name], self.model.geometry
        if len(shape) < 2:
            return Flops()
        routed = g.top_k_experts / g.num_experts if ".experts." in name else 1.0
        operations = 2 * math.prod(shape) * routed
        if self.model.multiplies_in_fp8(name):
            return Flops(fp8=operations)
        return Flops(bf16=operations)
