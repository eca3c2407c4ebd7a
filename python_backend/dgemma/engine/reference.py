"""The operations of a pass in plain torch: what the kernels compute, on any device.

Knows where each is; computes nothing itself. It is an `Operations`.
"""

from dgemma.engine.kernels.attention_reference import attend, keep, normed_heads, rotary_table
from dgemma.engine.kernels.experts_reference import down, gate_up
from dgemma.engine.kernels.linear_reference import gated_linear, linear
from dgemma.engine.kernels.norms_reference import (
    after_attention,
    after_feed_forward,
    entered,
    normed,
    quantize_rows,
)
from dgemma.engine.kernels.routing_reference import route

__all__ = [
    "after_attention",
    "after_feed_forward",
    "attend",
    "down",
    "entered",
    "gate_up",
    "gated_linear",
    "keep",
    "linear",
    "normed",
    "normed_heads",
    "quantize_rows",
    "rotary_table",
    "route",
]
