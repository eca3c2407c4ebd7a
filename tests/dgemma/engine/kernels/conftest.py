"""Triton's interpreter with the conversions of the hardware.

Its own cut BF16 off instead of rounding it, and lose the carry of e4m3 codes that round up.
"""

from __future__ import annotations

from collections.abc import Iterator
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


@pytest.fixture(autouse=True, scope="session")
def exact_conversions() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_convert_float", _convert)
        yield
