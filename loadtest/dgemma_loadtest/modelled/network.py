"""What passes of the network move and multiply, as diffusion and as autoregressive decoding.

Knows one file of sizes, and computes; knows nothing of machines.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import TypeAdapter

from dgemma_loadtest.platforms import Precision

_FILE = Path(__file__).with_name("gemma-4-26b-a4b.toml")


@dataclass(frozen=True)
class Work:
    """Of a pass: bytes that are read, operations by the format that is multiplied."""

    bytes: float
    bf16: float
    fp8: float = 0.0


@dataclass(frozen=True)
class Weights:
    """Bytes."""

    experts: int
    embedding: int
    rest: int

    @property
    def total(self) -> int:
        return self.experts + self.embedding + self.rest


@dataclass(frozen=True)
class KV:
    """Bytes of a position in all layers of a kind."""

    sliding: int
    full: int


@dataclass(frozen=True)
class Flops:
    """See the file."""

    fp8_share: int
    rest: int
    logits: int
    self_conditioning: int
    sliding_key: int
    full_key: int


@dataclass(frozen=True)
class Network:
    """One model, in every precision."""

    name: str
    canvas_tokens: int
    experts: int
    experts_per_token: int
    window_tokens: int
    kv: KV
    flops: Flops
    weights: dict[Precision, Weights]

    def diffusion(
        self, precision: Precision, rows: float, denoising: float, context: float
    ) -> Work:
        """A pass over `rows` canvases behind `context` tokens each, some of them denoising."""
        f, weights, tokens = self.flops, self.weights[precision], rows * self.canvas_tokens
        moved = self._read(weights, tokens) + rows * self._kv(context)
        # The embedding is read by the LM head, and once more by the soft embedding.
        moved += weights.embedding if denoising else -weights.embedding
        tail = denoising * self.canvas_tokens * (2 * f.logits + f.self_conditioning)
        attention = tokens * self._keys(context, own=self.canvas_tokens)
        return self._work(precision, moved, tokens, tail + attention)

    def autoregressive(
        self, precision: Precision, sequences: float, prompt_tokens: float, context: float
    ) -> Work:
        """A pass that gives each of `sequences` a token, and reads so many tokens of prompts."""
        weights, tokens = self.weights[precision], sequences + prompt_tokens
        moved = self._read(weights, tokens) + sequences * self._kv(context)
        own = prompt_tokens / 2  # a token of a prompt sees what is before it
        attention = sequences * self._keys(context, 1) + prompt_tokens * self._keys(own, 0)
        return self._work(precision, moved, tokens, sequences * self.flops.logits + attention)

    def kv_bytes(self, tokens: float) -> float:
        """Of a sequence of so many tokens in memory."""
        return self.kv.sliding * self.window_tokens + self.kv.full * tokens

    def covered(self, tokens: float) -> float:
        """The share of the experts that T tokens meet, where each chooses k of E evenly."""
        return float(1 - (1 - self.experts_per_token / self.experts) ** tokens)

    def _read(self, weights: Weights, tokens: float) -> float:
        return weights.total - weights.experts * (1 - self.covered(tokens))

    def _kv(self, context: float) -> float:
        return self.kv.sliding * min(context, self.window_tokens) + self.kv.full * context

    def _keys(self, context: float, own: float) -> float:
        f = self.flops
        return f.sliding_key * (min(context, self.window_tokens) + own) + f.full_key * (
            context + own
        )

    def _work(self, precision: Precision, moved: float, tokens: float, other: float) -> Work:
        products, rest = tokens * self.flops.fp8_share, tokens * self.flops.rest + other
        if precision == "fp8":
            return Work(moved, rest, products)
        return Work(moved, rest + products)


@lru_cache(1)
def network() -> Network:
    return TypeAdapter(Network).validate_python(tomllib.loads(_FILE.read_text()))
