"""What a denoise step needs to know of its logits, without ever holding `[L, V]` of them.

Knows the LM head, soft-cap and temperature, one vocabulary tile at a time, exactly; knows nothing
of acceptance, pinned tokens or stopping.
Shapes: R rows, L canvas length, D hidden size, V vocabulary, t a tile of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dgemma.tail.noise import Race
from dgemma.template import FREE

TILE = 8192


@dataclass(frozen=True)
class Head:
    """The LM head: the embedding `[V, D]` and the soft-cap of its logits."""

    embedding: Tensor
    softcap: float

    def scores(self, hidden: Tensor, temperature: Tensor, first: int, last: int) -> Tensor:
        """Temperature-scaled logits of ids `first..last-1`, fp32 `[R, L, t]`.

        All are too large by `softcap / temperature`, which no softmax sees.
        """
        weights = self.embedding[first:last].to(hidden.dtype).T
        logits = product(hidden, weights, 2 / self.softcap).float()
        # cap * (tanh(x / cap) + 1), written with a sigmoid: nine times as fast on CPUs.
        return logits.sigmoid_().mul_(2 * self.softcap / temperature)

    def probabilities(self, hidden: Tensor, temperature: Tensor) -> Tensor:
        """The whole distribution, fp32 `[R, L, V]`; for tapes, where memory does not matter."""
        return self.scores(hidden, temperature, 0, len(self.embedding)).softmax(-1)

    def hold(self, soft: Tensor, pinned: Tensor) -> Tensor:
        """Soft embeddings `[.., L, D]` with those of pinned tokens `[.., L]` in their places."""
        certain = self.embedding[pinned.clamp(min=0)].to(soft.dtype) * soft.shape[-1] ** 0.5
        return torch.where((pinned == FREE)[..., None], soft, certain)


@dataclass(frozen=True)
class Statistics:
    """One denoise step's view of the distribution at every position."""

    argmax: Tensor  # int64 [R, L], the first of equals
    sampled: Tensor  # int64 [R, L], the winner of the race
    entropy: Tensor  # fp32 [R, L], nats
    soft: Tensor  # [R, L, D], expected token embedding times sqrt(D)


def statistics(
    head: Head, hidden: Tensor, temperature: Tensor, race: Race | None, tile: int = TILE
) -> Statistics:
    """Sweep the vocabulary once with a running (online) softmax.

    `hidden [R, L, D]`, `temperature [R, 1, 1]`; without `race`, `sampled` is the argmax.
    """
    size = len(head.embedding)
    sums: _Sums | None = None
    for first in range(0, size, tile):
        last = min(first + tile, size)
        z = head.scores(hidden, temperature, first, last)
        noise = None if race is None else race(first, last)
        part = _Sums.of(z, first, head.embedding[first:last], noise)
        sums = part if sums is None else sums.joined(part)
    assert sums is not None, "a vocabulary has at least one token"
    entropy = sums.mass.log().sub_(sums.weighted.div_(sums.mass))
    soft = sums.mean.div_(sums.mass[..., None])
    return Statistics(sums.argmax, sums.sampled, entropy, soft.to(hidden.dtype))


@dataclass(frozen=True)
class Weights:
    """The tokens of a range of ids, relative to the one with the largest score."""

    top: Tensor  # [R, L], that score
    argmax: Tensor  # [R, L]
    weight: Tensor  # [R, L, t], exp(z - top)
    mass: Tensor  # [R, L], sum of weights
    weighted: Tensor  # [R, L], sum of weight * (z - top)

    @classmethod
    def of(cls, z: Tensor) -> Weights:
        """Of scores `[R, L, t]`, which are overwritten."""
        top, argmax = largest(z)
        # Relative to `top`, the top token adds nothing to `weighted`: small entropies stay exact.
        z = z.sub_(top[..., None])
        weight = z.exp()
        return cls(top, argmax, weight, weight.sum(-1), z.mul_(weight).sum(-1))


def mean_embedding(weight: Tensor, embedding: Tensor) -> Tensor:
    """Sum of weights times embeddings times sqrt(D), fp32 `[R, L, D]`."""
    root = math.sqrt(embedding.shape[-1])
    return product(weight.to(embedding.dtype), embedding, root).float()


@dataclass(frozen=True)
class _Sums:
    """Sums over a range of ids, relative to the largest score `top` among them."""

    top: Tensor  # [R, L]
    argmax: Tensor  # [R, L]
    mass: Tensor  # [R, L], sum of exp(z - top)
    weighted: Tensor  # [R, L], sum of exp(z - top) * (z - top)
    mean: Tensor  # [R, L, D], sum of exp(z - top) * embedding * sqrt(D)
    lead: Tensor  # [R, L], exp(z - top) / noise of the race's winner
    sampled: Tensor  # [R, L]

    @classmethod
    def of(cls, z: Tensor, first: int, embedding: Tensor, noise: Tensor | None) -> _Sums:
        """Of one tile `z [R, L, t]`, which is overwritten."""
        w = Weights.of(z)
        mean = mean_embedding(w.weight, embedding)
        lead, sampled = (w.top, w.argmax) if noise is None else largest(w.weight.div_(noise))
        argmax = w.argmax
        if first:
            argmax, sampled = argmax + first, sampled + first
        return cls(w.top, argmax, w.mass, w.weighted, mean, lead, sampled)

    def joined(self, later: _Sums) -> _Sums:
        """Sums over both ranges; of equal scores the earlier id is kept."""
        top = torch.maximum(self.top, later.top)
        a, b = self.relative_to(top), later.relative_to(top)
        return _Sums(
            top,
            torch.where(later.top > self.top, b.argmax, a.argmax),
            a.mass + b.mass,
            a.weighted + b.weighted,
            a.mean + b.mean,
            torch.maximum(a.lead, b.lead),
            torch.where(b.lead > a.lead, b.sampled, a.sampled),
        )

    def relative_to(self, top: Tensor) -> _Sums:
        shift = self.top - top
        scale = shift.exp()
        return replace(
            self,
            mass=self.mass * scale,
            weighted=(self.weighted + self.mass * shift) * scale,
            mean=self.mean * scale[..., None],
            lead=self.lead * scale,
        )


def largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum over the last axis and its index, the first of equals."""
    if x.device.type != "cpu" or torch.compiler.is_exporting():
        top, index = x.max(-1)
        return top, index
    # torch looks for an index one number at a time; numpy and `amax` take eight.
    return x.amax(-1), torch.from_numpy(x.numpy().argmax(-1))


def product(rows: Tensor, matrix: Tensor, scale: float) -> Tensor:
    """`scale * rows [R, L, n] @ matrix [n, m]`, on CPUs row by row.

    There a product rounds otherwise with more lines, and no row may depend on its neighbours.
    """
    if rows.device.type != "cpu" or torch.compiler.is_exporting():
        return rows @ matrix * scale
    out = rows.new_empty(*rows.shape[:-1], matrix.shape[-1])
    for row, place in zip(rows.unbind(), out.unbind(), strict=True):
        torch.addmm(place, row, matrix, beta=0, alpha=scale, out=place)
    return out
