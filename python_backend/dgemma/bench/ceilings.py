"""What a device can do at best, measured: how fast it copies and how fast it multiplies.

Knows two experiments; knows nothing of engines. Data are random: zeros are multiplied faster.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dgemma.bench.report import Ceilings
from dgemma.bench.timing import median_ms

_RUNS = 10


def ceilings(device: torch.device, copied: int = 2**32, size: int = 8192) -> Ceilings:
    """Of `device`, with copies of `copied` bytes and square matrices of `size`."""
    return Ceilings(
        bandwidth_bytes_per_s=bandwidth(device, copied),
        bf16_flops_per_s=product_rate(device, size, torch.bfloat16),
        fp8_flops_per_s=_fp8_rate(device, size),
    )


def bandwidth(device: torch.device, copied: int) -> float:
    """Bytes read and written per second by a copy."""
    source = torch.randint(0, 256, (copied,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return _per_second(2 * copied, lambda: target.copy_(source), device)


def product_rate(device: torch.device, size: int, dtype: torch.dtype) -> float:
    """Operations per second of a product of two matrices."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return _per_second(2 * size**3, lambda: a @ b, device)


def _fp8_rate(device: torch.device, size: int) -> float | None:
    """With one scale per row and per column; None where torch has no such product."""
    if device.type != "cuda":
        return None
    a, b = (torch.randn(size, size, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    scale = torch.ones(size, 1, device=device)

    def product() -> Tensor:
        return torch._scaled_mm(
            a, b.t(), scale_a=scale, scale_b=scale.t(), out_dtype=torch.bfloat16
        )

    try:
        return _per_second(2 * size**3, product, device)
    except RuntimeError:  # a GPU without FP8, or without row-wise scales
        return None


def _per_second(amount: int, call: Callable[[], object], device: torch.device) -> float:
    return 1e3 * amount / median_ms(call, device, _RUNS)
