"""Which positions of a canvas keep their sampled token, and when a canvas is done.

Knows the entropy bound and the stable-and-confident rule as functions of statistics; knows nothing
of logits or noise. Pinned positions count for neither.
Shapes: R rows, L canvas length, H steps of history.
"""

from __future__ import annotations

import torch
from torch import Tensor


def temperature(step: int, max_denoising_steps: int, t_min: float, t_max: float) -> float:
    """Linear schedule; `step` counts from 0, so the first step runs at `t_max`."""
    remaining = max_denoising_steps - step
    return t_min + (t_max - t_min) * (remaining / max_denoising_steps)


def accept(entropy: Tensor, bound: Tensor, free: Tensor) -> Tensor:
    """Accepted free positions, bool `[R, L]`, of entropies `[R, L]` and bounds `[R, 1]`.

    In ascending order of entropy a position is accepted while the entropies before it sum to at
    most the bound (https://arxiv.org/abs/2505.24857), hence always at least one.
    """
    ordered = entropy.masked_fill(~free, torch.inf).sort(-1)
    # An infinite entropy minus itself is NaN, which no bound admits: pinned positions stay out.
    within = ordered.values.cumsum(-1) - ordered.values <= bound
    return torch.zeros_like(within).scatter(-1, ordered.indices, within)


def mean_entropy(entropy: Tensor, free: Tensor) -> Tensor:
    """Mean over the free positions, `[R]`; 0 where there are none."""
    total = entropy.masked_fill(~free, 0.0).sum(-1)
    return total / free.sum(-1).clamp(min=1)


def stable(argmax: Tensor, history: Tensor, depth: Tensor) -> Tensor:
    """Whether each row's argmax equals its last `depth [R]` ones, bool `[R]`.

    `history [R, H, L]` holds the latest first, -1 where there is none; depth 0 is always stable.
    """
    same = (history == argmax[:, None]).all(-1)  # [R, H]
    ignored = torch.arange(history.shape[1], device=depth.device) >= depth[:, None]
    return (same | ignored).all(-1)
