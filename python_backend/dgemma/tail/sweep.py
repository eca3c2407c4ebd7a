"""What looks at the whole vocabulary in a denoise step: plain torch, or kernels where they run.

Knows which of them a device gets; imports kernels only there, since CPU builds of torch bring no
Triton.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from dgemma.errors import ConfigurationError
from dgemma.tail.noise import Race
from dgemma.tail.statistics import Head, Statistics, statistics


class Sweep(Protocol):
    """`statistics` of a race, whatever computes them."""

    def __call__(
        self, head: Head, hidden: Tensor, temperature: Tensor, race: Race, /
    ) -> Statistics: ...


def sweep_for(embedding: Tensor) -> Sweep:
    """Kernels for a BF16 embedding on a GPU that they are laid out for."""
    wanted = embedding.device.type == "cuda" and embedding.dtype == torch.bfloat16
    if not wanted or find_spec("triton") is None:
        return statistics
    from dgemma.engine.kernels import tail

    try:
        return partial(tail.statistics, tiles=tail.tiles_at(embedding.device))
    except ConfigurationError:
        return statistics
