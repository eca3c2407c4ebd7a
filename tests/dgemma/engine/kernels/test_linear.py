"""Dense products against plain torch, in every format."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dgemma.engine.kernels import linear, linear_reference
from dgemma.engine.kernels.operands import Lines, Weight
from tests.dgemma.engine.kernels.formats import error, lines_for, poisoned_outputs, random_weight

LIMIT = 1e-2
formats = pytest.mark.parametrize("format", ["bf16", "fp8", "int4", "nvfp4"])


@pytest.fixture(autouse=True)
def _surroundings() -> Iterator[None]:
    with poisoned_outputs():
        yield


def _errors(x: Lines, plain: Weight, gated: Weight) -> tuple[float, float]:
    return (
        error(linear.linear(x, plain), linear_reference.linear(x, plain)),
        error(linear.gated_linear(x, gated), linear_reference.gated_linear(x, gated)),
    )


SHAPES = [
    # lines, outputs, inputs
    ("bf16 fp8", 1, 48, 32),
    ("bf16 fp8", 70, 37, 21),
    ("bf16 fp8 nvfp4", 33, 150, 80),
    ("int4 nvfp4", 70, 150, 192),
]
CASES = [(format, *shape) for names, *shape in SHAPES for format in names.split()]


@pytest.mark.parametrize(("format", "lines", "outputs", "inputs"), CASES)
def test_equals_plain_torch(format: str, lines: int, outputs: int, inputs: int) -> None:
    torch.manual_seed(lines)
    x = lines_for(format, torch.randn(lines, inputs))
    plain, gated = (random_weight(format, n * outputs, inputs) for n in (1, 2))
    assert max(_errors(x, plain, gated)) < LIMIT


@formats
def test_equals_plain_torch_with_the_real_inputs(format: str) -> None:
    torch.manual_seed(0)
    x = lines_for(format, torch.randn(8, 2112 if format != "bf16" else 2816))
    inputs = x.values.shape[1]
    assert max(_errors(x, *(random_weight(format, 128, inputs) for _ in range(2)))) < LIMIT


@formats
def test_lines_of_many_canvases(format: str) -> None:
    """In tiles of 128, in more than one group of them."""
    torch.manual_seed(0)
    x = lines_for(format, torch.randn(2100, 64))
    assert max(_errors(x, *(random_weight(format, 160, 64) for _ in range(2)))) < LIMIT


@formats
def test_a_line_gets_the_same_alone_and_among_others(format: str) -> None:
    """Bit for bit, in tiles of different sizes; torch's own product in bf16 promises less."""
    torch.manual_seed(0)
    values = lines_for(format, torch.randn(600, 128))
    one = Lines(values.values[7:8], None if values.scale is None else values.scale[7:8])
    weight = random_weight(format, 40, 128)
    products = [linear.gated_linear] + [linear.linear] * (format != "bf16")
    for product in products:
        assert torch.equal(product(values, weight)[7:8], product(one, weight))


@formats
def test_would_notice_a_wrong_half(format: str) -> None:
    torch.manual_seed(0)
    x, weight = lines_for(format, torch.randn(5, 64)), random_weight(format, 32, 64)
    swapped = Weight(
        weight.format,
        *(
            None if part is None else part.view(torch.uint8).roll(16, 0).view(part.dtype)
            for part in (weight.payload, weight.block_scale, weight.row_scale)
        ),  # type: ignore[arg-type]
    )
    wanted = linear_reference.gated_linear(x, weight)
    assert error(linear.gated_linear(x, swapped), wanted) > 10 * LIMIT


def test_lines_of_another_format_are_refused() -> None:
    x = lines_for("bf16", torch.randn(4, 64))
    for product in (linear.linear, linear.gated_linear):
        with pytest.raises(ValueError, match="weights in fp8 want e4m3 lines"):
            product(x, random_weight("fp8", 8, 64))
