"""Which experts tokens go to, and the order in which experts meet them.

Knows the tensors that routing hands to the experts' products; computes nothing.
Shapes: T tokens, k experts per token, E experts. An assignment is `token * k + place`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Routed:
    """Every token at every of its experts: nothing is dropped, and no expert has a capacity."""

    weights: Tensor  # fp32 [T, k], renormalised and times the expert's scale
    experts: Tensor  # int32 [T, k]
    order: Tensor  # int32 [T * k]: assignments by expert, in token order within one
    offsets: Tensor  # int32 [E + 1]: where each expert's stretch of `order` begins
