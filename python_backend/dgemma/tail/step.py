"""One denoise step of vocabularies that are one tile, as three functions of tensors.

`look` is what each token's own hidden state says; `move` is what a step has made of a canvas all of
whose tokens were looked at; `draw` is what a canvas that is not done needs besides. Knows neither
canvases nor what runs it: eager torch, or a runtime that it was emitted for.
Shapes: R rows, L canvas length, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dgemma.tail.acceptance import accept, mean_entropy
from dgemma.tail.noise import exponential
from dgemma.tail.statistics import Head, Weights, largest, mean_embedding


class Look(NamedTuple):
    """What a step sees at each token; `weight` and `mass` are for `draw`."""

    argmax: Tensor  # int64 [R, L]
    entropy: Tensor  # fp32 [R, L], nats
    weight: Tensor  # fp32 [R, L, V]
    mass: Tensor  # fp32 [R, L]


class Draw(NamedTuple):
    """What the next step may denoise at each token."""

    sampled: Tensor  # int64 [R, L]
    soft: Tensor  # fp32 [R, L, D]


class Move(NamedTuple):
    """What a step has made of a canvas."""

    accepted: Tensor  # bool [R, L]
    mean: Tensor  # fp32 [R], of the free positions' entropies
    same: Tensor  # bool [R], whether no free position's argmax has changed


def look(head: Head, hidden: Tensor, temperature: Tensor) -> Look:
    """Of `hidden [R, L, D]` and `temperature [R, 1, 1]`."""
    w = Weights.of(head.scores(hidden, temperature, 0, len(head.embedding)))
    entropy = w.mass.log() - w.weighted / w.mass
    return Look(w.argmax, entropy, w.weight, w.mass)


def draw(head: Head, weight: Tensor, mass: Tensor, positions: Tensor, tokens: Tensor) -> Draw:
    """Of what `look` gave and the step's hashed words of positions `[R, L, 1]` and tokens
    `[R, 1, V]`.
    """
    soft = mean_embedding(weight, head.embedding) / mass[..., None]
    _, sampled = largest(weight / exponential(positions, tokens))
    return Draw(sampled, soft)


def move(argmax: Tensor, entropy: Tensor, bound: Tensor, last: Tensor, free: Tensor) -> Move:
    """Of what `look` gave of all tokens, `bound [R, 1]`, the argmax of the step before
    `last [R, L]`, and the positions that are `free`, bool `[R, L]`.
    """
    accepted = accept(entropy, bound, free)
    same = ((argmax == last) | ~free).all(-1)
    return Move(accepted, mean_entropy(entropy, free), same)
