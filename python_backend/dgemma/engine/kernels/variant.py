"""A kernel as it is compiled: the types of its arguments, its constants, its launch.

Knows how a compilation is described; knows neither compilers nor launches. Every module of kernels
has a function `variants(geometry, chip)` that yields those which the engine launches there, so that
they can be compiled, and looked at, without a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One kernel in one form."""

    name: str  # "experts.gate_up fp8 16 tokens": unique among those of one chip
    kernel: Any  # the function under `triton.jit`
    # Every argument that is no constant, in order: "*bf16", "*fp8e4nv", "*fp32", "*u8", "i32", …
    # Pointers, and integers named in `aligned`, are promised to be multiples of 16.
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    aligned: frozenset[str] = frozenset()
    num_warps: int = 4
    num_stages: int = 3
    hot: bool = True  # takes a part of the pass that shows: spills there need a reason
    reason: str = ""  # why it spills, where it does
