"""The operations of a pass as kernels.

Knows where each is and the chip that it is laid out for; computes nothing itself. It is an
`Operations`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dgemma.engine.kernels import attention, experts, heads, keep, linear, norms, routing
from dgemma.engine.kernels.attention_tiles import Tiles
from dgemma.engine.kernels.chip import Chip
from dgemma.engine.kernels.operands import Lines
from dgemma.engine.kernels.rows import PassRows


@dataclass(frozen=True)
class KernelOperations:
    """For one chip."""

    chip: Chip

    entered = staticmethod(norms.entered)
    normed = staticmethod(norms.normed)
    quantize_rows = staticmethod(norms.quantize_rows)
    after_attention = staticmethod(norms.after_attention)
    after_feed_forward = staticmethod(norms.after_feed_forward)
    gated_linear = staticmethod(linear.gated_linear)
    linear = staticmethod(linear.linear)
    rotary_table = staticmethod(heads.rotary_table)
    normed_heads = staticmethod(heads.normed_heads)
    keep = staticmethod(keep.keep)
    route = staticmethod(routing.route)
    gate_up = staticmethod(experts.gate_up)
    down = staticmethod(experts.down)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pool_k: Tensor,
        pool_v: Tensor,
        rows: PassRows,
        *,
        window: int | None,
        context: int,
        fp8: bool,
    ) -> Lines:
        tiles = Tiles.of(self.chip, q.shape[-1], window)
        return attention.attend(
            *(q, k, v, pool_k, pool_v, rows), window=window, context=context, tiles=tiles, fp8=fp8
        )
