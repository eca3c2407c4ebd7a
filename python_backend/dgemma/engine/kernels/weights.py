"""Which formats of weights products take, and with which lines and types.

Knows formats as kernels see them; knows no tiles and computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from dgemma.engine.kernels.chip import Chip
from dgemma.engine.kernels.operands import FP8, Lines, Weight
from dgemma.precision import FORMATS, Format

_SERVED = ("bf16", "fp8", "int4", "nvfp4")
_TRITON = {"BF16": "*bf16", "F8_E4M3": "*fp8e4nv", "U8": "*u8", "F32": "*fp32"}


def served_formats(chip: Chip, inputs: tuple[int, ...]) -> Iterator[Format]:
    """Those that a chip multiplies and whose groups fill all of `inputs` columns."""
    for name in _SERVED:
        format = FORMATS[name]
        whole = all(columns % (format.group_size or 1) == 0 for columns in inputs)
        if whole and chip.takes(name):
            yield format


def checked(x: Lines, weight: Weight) -> None:
    """ValueError where a weight's format wants other lines than these."""
    if weight.format.name not in _SERVED:
        known = ", ".join(_SERVED)
        raise ValueError(f"no product takes weights in {weight.format.name}; known: {known}")
    is_fp8 = weight.format.name == "fp8"
    if (x.values.dtype == FP8) != is_fp8 or (x.scale is not None) != is_fp8:
        wanted = "e4m3 lines with a scale each" if is_fp8 else "bf16 lines without scales"
        raise ValueError(
            f"weights in {weight.format.name} want {wanted}, "
            f"got {x.values.dtype} {'with' if x.scale is not None else 'without'} scales"
        )


def value_types(format: Format) -> str:
    """Triton's type of the lines that go with a format."""
    return "*fp8e4nv" if format.name == "fp8" else "*bf16"


def scale_types(format: Format) -> tuple[dict[str, None], dict[str, str]]:
    """Arguments of a format that are absent, and the types of those that are there, in order."""
    types = {
        "x_scale": "*fp32" if format.name == "fp8" else None,
        "payload": _TRITON[format.payload],
        "block_scale": format.block_scale and _TRITON[format.block_scale],
        "row_scale": format.row_scale and _TRITON[format.row_scale],
    }
    absent = {name: None for name, kind in types.items() if kind is None}
    return absent, {name: kind for name, kind in types.items() if kind is not None}
