from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma.engine.kernels import attention_reference
from dgemma.engine.kernels.attention import attend
from dgemma.engine.kernels.attention_tiles import Tiles
from tests.dgemma.engine.kernels.passes import Pass, Shape, random_pass, random_rows

SMALL = Tiles(lines=16, keys=16, least=1, most=4, num_warps=4, num_stages=2)
SHAPES = [
    Shape(heads=4, groups=2, dim=16, length=20, window=37, places=150),
    Shape(heads=3, groups=1, dim=24, length=20, window=9, places=150),  # padded heads and dims
    Shape(heads=4, groups=1, dim=32, length=20, window=None, places=150),
    Shape(heads=2, groups=2, dim=64, length=33, window=32, places=100),
]


def distance(got: Tensor, wanted: Tensor) -> float:
    return float((got.float() - wanted.float()).norm() / wanted.float().norm())


def real(drawn: Pass, lines: Tensor) -> Tensor:
    """Those of tokens that count."""
    rows = zip(lines.unflatten(0, (-1, drawn.shape.length)), drawn.rows.valid.tolist(), strict=True)
    return torch.cat([row[:valid] for row, valid in rows])


def both(drawn: Pass, tiles: Tiles = SMALL, **options: Any) -> tuple[Tensor, Tensor]:
    window = drawn.shape.window
    got = attend(*drawn.operands, window=window, context=drawn.context, tiles=tiles, **options)
    assert got.values.float().isfinite().all()
    wanted = attention_reference.attend(
        *drawn.to(torch.float32).operands, window=window, context=drawn.context
    )
    return real(drawn, got.values), real(drawn, wanted.values)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_references(shape: Shape, seed: int) -> None:
    drawn = random_pass(shape, random_rows(shape.length, shape.places, seed), seed)
    assert distance(*both(drawn)) < 1e-2
