"""BF16 sums and products in Triton's interpreter, which works on the integers that hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder

Operation = Callable[[Any, Any, Any], Any]


@contextmanager
def bf16_arithmetic() -> Iterator[None]:
    """Each operation rounds once, to the nearest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "get_bf16", _constant, raising=False)
        for name in ("create_fadd", "create_fsub", "create_fmul"):
            patch.setattr(InterpreterBuilder, name, _rounding(getattr(InterpreterBuilder, name)))
        yield


def _constant(self: Any, value: float) -> Any:
    return self.create_fp_trunc(self.get_fp32(value), tl.bfloat16)


def _rounding(original: Operation) -> Operation:
    def operation(self: Any, lhs: Any, rhs: Any) -> Any:
        if lhs.dtype.scalar != tl.bfloat16:
            return original(self, lhs, rhs)
        wide = (self.create_fp_ext(x, tl.float32) for x in (lhs, rhs))
        return self.create_fp_trunc(original(self, *wide), tl.bfloat16)

    return operation
