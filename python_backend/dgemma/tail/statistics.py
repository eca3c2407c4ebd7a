"""What a denoise step needs to know of its logits, without ever holding `[L, V]` of them.

Knows the LM head, soft-cap and temperature, one vocabulary tile at a time, exactly; knows nothing
of acceptance, pinned tokens or stopping.
Shapes: R rows, L canvas length, D hidden size, V vocabulary, t a tile of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 8192

Perturb = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Head:
    """The LM head: the embedding `[V, D]` and the soft-cap of its logits."""

    embedding: Tensor
    softcap: float

    def scores(self, hidden: Tensor, temperature: Tensor, first: int, last: int) -> Tensor:
        """Temperature-scaled logits of ids `first..last-1`, fp32 `[R, L, t]`."""
        logits = F.linear(hidden, self.embedding[first:last].to(hidden.dtype)).float()
        return logits.div_(self.softcap).tanh_().mul_(self.softcap).div_(temperature)

    def probabilities(self, hidden: Tensor, temperature: Tensor) -> Tensor:
        """The whole distribution, fp32 `[R, L, V]`; for tapes, where memory does not matter."""
        return self.scores(hidden, temperature, 0, len(self.embedding)).softmax(-1)


@dataclass(frozen=True)
class Statistics:
    """One denoise step's view of the distribution at every position."""

    argmax: Tensor  # int64 [R, L], the first of equals
    sampled: Tensor  # int64 [R, L], argmax of the perturbed scores
    entropy: Tensor  # fp32 [R, L], nats
    soft: Tensor  # [R, L, D], expected token embedding times sqrt(D)


def statistics(
    head: Head, hidden: Tensor, temperature: Tensor, perturb: Perturb | None, tile: int = TILE
) -> Statistics:
    """Sweep the vocabulary once with a running (online) softmax.

    `hidden [R, L, D]`, `temperature [R, 1, 1]`; `perturb(first, last)` gives a tile's Gumbel noise
    `[R, L, t]`, and without it `sampled` is the argmax.
    """
    size = len(head.embedding)
    sweep: _Sweep | None = None
    argmax: _Best | None = None
    sampled: _Best | None = None
    for first in range(0, size, tile):
        last = min(first + tile, size)
        z = head.scores(hidden, temperature, first, last)
        argmax = _Best.of(z, first, argmax)
        sampled = _Best.of(z + perturb(first, last), first, sampled) if perturb else argmax
        sweep = _Sweep.of(z, argmax.value, head.embedding[first:last], sweep)
    assert sweep and argmax and sampled, "a vocabulary has at least one token"
    entropy = sweep.mass.log() - sweep.weighted / sweep.mass
    soft = sweep.mean * (math.sqrt(hidden.shape[-1]) / sweep.mass[..., None])
    return Statistics(argmax.index, sampled.index, entropy, soft.to(hidden.dtype))


@dataclass(frozen=True)
class _Best:
    value: Tensor  # [R, L]
    index: Tensor

    @classmethod
    def of(cls, z: Tensor, first: int, earlier: _Best | None) -> _Best:
        value, index = z.max(-1)
        if earlier is None:
            return cls(value, index)
        wins = value > earlier.value
        return cls(
            torch.where(wins, value, earlier.value),
            torch.where(wins, index + first, earlier.index),
        )


@dataclass(frozen=True)
class _Sweep:
    """Sums over the ids seen so far, relative to the largest score `top` among them."""

    top: Tensor  # [R, L]
    mass: Tensor  # [R, L], sum of exp(z - top)
    weighted: Tensor  # [R, L], sum of exp(z - top) * (z - top)
    mean: Tensor  # [R, L, D], sum of exp(z - top) * embedding

    @classmethod
    def of(cls, z: Tensor, top: Tensor, embedding: Tensor, earlier: _Sweep | None) -> _Sweep:
        # Relative to `top`, the top token adds nothing to `weighted`: small entropies stay exact.
        z = z - top[..., None]
        weight = z.exp()
        mass, weighted = weight.sum(-1), z.mul_(weight).sum(-1)
        mean = (weight.to(embedding.dtype) @ embedding).float()
        if earlier is not None:
            shift = earlier.top - top
            scale = shift.exp()
            mass = mass + earlier.mass * scale
            weighted = weighted + (earlier.weighted + earlier.mass * shift) * scale
            mean = mean + earlier.mean * scale[..., None]
        return cls(top, mass, weighted, mean)
