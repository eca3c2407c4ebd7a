"""Which positions of a canvas keep their sampled token, and when a canvas is done.

Knows the entropy bound and the stable-and-confident rule as functions of statistics; knows nothing
of logits or noise. Pinned positions count for neither.
Shapes: R rows, L canvas length.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def temperature(step: int, max_denoising_steps: int, t_min: float, t_max: float) -> float:
    """Linear schedule; `step` counts from 0, so the first step runs at `t_max`."""
    remaining = max_denoising_steps - step
    return t_min + (t_max - t_min) * (remaining / max_denoising_steps)


def accept(entropy: Tensor, bound: Tensor, free: Tensor | None = None) -> Tensor:
    """Accepted free positions, bool `[R, L]`, of entropies `[R, L]` and bounds `[R, 1]`.

    In ascending order of entropy a position is accepted while the entropies before it sum to at
    most the bound (https://arxiv.org/abs/2505.24857), hence always at least one. Without `free`,
    bool `[R, L]`, all positions are.
    """
    ordered = (entropy if free is None else entropy.masked_fill(~free, torch.inf)).sort(-1)
    # An infinite entropy minus itself is NaN, which no bound admits: pinned positions stay out.
    within = ordered.values.cumsum(-1) - ordered.values <= bound
    return torch.empty_like(within).scatter_(-1, ordered.indices, within)


def mean_entropy(entropy: Tensor, free: Tensor | None = None) -> Tensor:
    """Mean over the free positions, `[R]`; 0 where there are none."""
    if free is None:
        return entropy.mean(-1)
    total = entropy.masked_fill(~free, 0.0).sum(-1)
    return total / free.sum(-1).clamp(min=1)


def converged(repeats: int, depth: int, mean: float, confidence: float) -> bool:
    """Whether a canvas is done: stable and confident.

    `repeats` steps in a row had the argmax canvas of the step before; at least `depth` make it
    stable. Its mean entropy is compared with `confidence` in fp32, as HF does; both in nats.
    """
    return repeats >= depth and mean < float(np.float32(confidence))
