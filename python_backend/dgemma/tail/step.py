"""One denoise step of vocabularies that are one tile, as two functions of tensors.

`look` is what decides whether a canvas is done, `move` what a canvas that is not done needs
besides; knows neither canvases nor what runs it: eager torch, or a runtime it was emitted for.
Shapes: R rows, L canvas length, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dgemma.tail.acceptance import accept, mean_entropy
from dgemma.tail.noise import exponential
from dgemma.tail.statistics import Head, Weights, largest, mean_embedding


class Look(NamedTuple):
    """What a step sees; `weight` and `mass` are for `move`."""

    argmax: Tensor  # int64 [R, L]
    accepted: Tensor  # bool [R, L]
    entropy: Tensor  # fp32 [R, L], nats
    mean: Tensor  # fp32 [R], of the free positions' entropies
    same: Tensor  # bool [R], whether no free position's argmax has changed
    weight: Tensor  # fp32 [R, L, V]
    mass: Tensor  # fp32 [R, L]


class Move(NamedTuple):
    """What the next step denoises."""

    ids: Tensor  # int64 [R, L]
    soft: Tensor  # fp32 [R, L, D]


def look(
    head: Head, hidden: Tensor, temperature: Tensor, bound: Tensor, last: Tensor, free: Tensor
) -> Look:
    """Of `hidden [R, L, D]`, `temperature [R, 1, 1]`, `bound [R, 1]`, the argmax of the step before
    `last [R, L]`, and the positions that are `free`, bool `[R, L]`.
    """
    w = Weights.of(head.scores(hidden, temperature, 0, len(head.embedding)))
    entropy = w.mass.log() - w.weighted / w.mass
    accepted = accept(entropy, bound, free)
    same = ((w.argmax == last) | ~free).all(-1)
    return Look(w.argmax, accepted, entropy, mean_entropy(entropy, free), same, w.weight, w.mass)


def move(
    head: Head,
    weight: Tensor,
    mass: Tensor,
    accepted: Tensor,
    renoise: Tensor,
    positions: Tensor,
    tokens: Tensor,
) -> Move:
    """Of what `look` gave and of the draws of the step: `renoise [R, L]`, and the hashed words of
    positions `[R, L, 1]` and tokens `[R, 1, V]`.
    """
    soft = mean_embedding(weight, head.embedding) / mass[..., None]
    _, sampled = largest(weight / exponential(positions, tokens))
    return Move(torch.where(accepted, sampled, renoise), soft)
