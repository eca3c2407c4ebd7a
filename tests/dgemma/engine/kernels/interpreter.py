"""Triton's interpreter with the conversions and products of the hardware.

Its own cut BF16 off instead of rounding it, lose the carry of e4m3 codes that round up, and add
and multiply BF16 as the integers that hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from dgemma.engine.kernels.operands import FP8, FP8_MOST

# Triton's type -> torch's, and an integer of its size
_NARROW = {tl.bfloat16: (torch.bfloat16, np.int16), tl.float8e4nv: (FP8, np.uint8)}
_original = interpreter._convert_float
_builder = interpreter.InterpreterBuilder
_original_dot = _builder.create_dot


def _convert(values: Any, source: Any, target: Any, rounding: Any) -> Any:
    if source == tl.float32 and target in _NARROW:
        dtype, integer = _NARROW[target]
        wide = torch.from_numpy(np.array(values, dtype=np.float32))
        if dtype == FP8:
            wide = wide.clamp(-FP8_MOST, FP8_MOST)  # as cvt.rn.satfinite
        narrow = wide.to(dtype).reshape(-1).view(torch.from_numpy(np.empty(0, integer)).dtype)
        return narrow.numpy().view(np.dtype(f"u{np.dtype(integer).itemsize}")).reshape(values.shape)
    if source in _NARROW and target == tl.float32:
        dtype, integer = _NARROW[source]
        narrow = torch.from_numpy(np.array(values).view(integer)).reshape(-1).view(dtype)
        return narrow.float().numpy().view(np.uint32).reshape(values.shape)
    return _original(values, source, target, rounding)


def _dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
    return _original_dot(self, _widened(a), _widened(b), *others)


def _widened(x: Any) -> Any:
    if x.dtype.scalar != tl.bfloat16:
        return x
    wide = _convert(x.data, tl.bfloat16, tl.float32, None).view(np.float32)
    return interpreter.TensorHandle(wide, tl.float32)


def _constant(self: Any, value: float) -> Any:
    return self.create_fp_trunc(self.get_fp32(value), tl.bfloat16)


def _rounding(original: Callable[..., Any]) -> Callable[..., Any]:
    """Of BF16, once and to the nearest."""

    def operation(self: Any, lhs: Any, rhs: Any) -> Any:
        if lhs.dtype.scalar != tl.bfloat16:
            return original(self, lhs, rhs)
        wide = (self.create_fp_ext(x, tl.float32) for x in (lhs, rhs))
        return self.create_fp_trunc(original(self, *wide), tl.bfloat16)

    return operation


@contextmanager
def exact() -> Iterator[None]:
    """Meanwhile the interpreter rounds, adds and multiplies as GPUs do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_convert_float", _convert)
        patch.setattr(_builder, "create_dot", _dot)
        patch.setattr(_builder, "get_bf16", _constant, raising=False)
        for name in ("create_fadd", "create_fsub", "create_fmul"):
            patch.setattr(_builder, name, _rounding(getattr(_builder, name)))
        yield
