"""Random weights and lines in each format that products take, and outputs that start poisoned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma.engine.kernels.operands import FP8, FP8_MOST, Lines, Weight
from dgemma.precision import BLOCK_SCALE, FORMATS, ROW_SCALE
from dgemma_build.quantize.encode import encode, tensor_scale_of


def random_weight(format: str, *shape: int) -> Weight:
    """`[.., N, K]` with outputs of about the size of a line's values."""
    values = torch.randn(*shape) / shape[-1] ** 0.5
    if not FORMATS[format].is_quantized:
        return Weight(FORMATS[format], values.to(torch.bfloat16))
    flat = values.flatten(0, -2)
    rows = encode(FORMATS[format], flat, tensor_scale_of(flat.abs().amax()))
    whole = {name: rows[name].unflatten(0, shape[:-1]).contiguous() for name in rows}
    return Weight(FORMATS[format], whole[""], whole.get(BLOCK_SCALE), whole.get(ROW_SCALE))


def lines_for(format: str, values: Tensor) -> Lines:
    """Lines in the type that weights of this format want."""
    if format != "fp8":
        return Lines(values.bfloat16())
    scale = values.float().abs().amax(-1).clamp(min=1e-12) / FP8_MOST
    return Lines((values.float() / scale[:, None]).to(FP8), scale)


def error(got: Tensor, wanted: Tensor) -> float:
    """Relative, in the norm; NaN where anything is."""
    return float((got.float() - wanted.float()).norm() / wanted.float().norm())


@contextmanager
def poisoned_outputs() -> Iterator[None]:
    """What a kernel does not write is not a number."""
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        tensor: Tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.dtype == torch.bfloat16 else tensor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poisoned)
        yield
