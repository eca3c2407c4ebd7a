from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma.engine.kernels import attention_reference, norms_reference
from dgemma.engine.kernels.attention import attend, variants
from dgemma.engine.kernels.attention_reference import RowNumbers
from dgemma.engine.kernels.attention_tiles import Tiles
from dgemma.engine.kernels.chip import CAPABILITIES, Chip
from dgemma.engine.kernels.combine import combine
from dgemma.engine.kernels.operands import Lines
from dgemma.errors import ConfigurationError
from dgemma.geometries import DEFAULT, named_geometry
from tests.dgemma.engine.kernels.passes import (
    DENOISE,
    ENCODE,
    Pass,
    Shape,
    distance,
    random_pass,
    random_rows,
    rows_of,
)

SMALL = Tiles(lines=16, keys=16, least=1, most=4, num_warps=4, num_stages=2)
WIDER = Tiles(lines=32, keys=16, least=2, most=3, num_warps=4, num_stages=2)
RING = Shape(heads=4, groups=2, dim=16, length=20, window=37, places=150)
CASES = [
    (RING, SMALL),
    (Shape(heads=4, groups=2, dim=16, length=20, window=9, places=150), WIDER),
    (Shape(heads=3, groups=1, dim=24, length=13, window=16, places=90), SMALL),  # padded
    (Shape(heads=4, groups=1, dim=32, length=20, window=None, places=150), WIDER),
    (Shape(heads=2, groups=2, dim=64, length=17, window=None, places=100), SMALL),
]


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """What a kernel leaves unwritten of a new tensor is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def real(drawn: Pass, lines: Tensor) -> Tensor:
    """Those of tokens that count."""
    rows = zip(lines.unflatten(0, (-1, drawn.shape.length)), drawn.rows.valid.tolist(), strict=True)
    return torch.cat([row[:valid] for row, valid in rows])


def attended(drawn: Pass, tiles: Tiles, further: int = 0, **options: Any) -> Lines:
    context = drawn.context + further
    window = drawn.shape.window
    return attend(*drawn.operands, window=window, context=context, tiles=tiles, **options)


def reference(drawn: Pass) -> Tensor:
    wide = drawn.to(torch.float32)
    return attention_reference.attend(
        *wide.operands, window=drawn.shape.window, context=drawn.context
    ).values


@pytest.mark.parametrize(("shape", "tiles"), CASES)
def test_it_is_the_references_and_a_row_does_not_see_its_neighbours(
    shape: Shape, tiles: Tiles
) -> None:
    seed = CASES.index((shape, tiles))
    drawn = random_pass(shape, random_rows(shape.length, shape.places, seed), seed)
    got = attended(drawn, tiles).values
    assert got.isfinite().all()
    assert distance(real(drawn, got), real(drawn, reference(drawn))) < 1e-2
    # Bit for bit, in other places of a pass and with another bound of the context.
    for rows in ((4, 2), (3,)):
        alone = attended(drawn.of_rows(*rows), tiles, further=300).values
        by_row = got.unflatten(0, (-1, shape.length))
        assert torch.equal(alone, torch.cat([by_row[row] for row in rows]))


@pytest.mark.parametrize(
    ("shape", "capability"),
    [
        (Shape(heads=16, groups=8, dim=256, length=12, window=1024, places=0), 90),
        (Shape(heads=16, groups=2, dim=512, length=12, window=None, places=60), 90),
        (Shape(heads=16, groups=2, dim=512, length=5, window=None, places=60), 120),
    ],
)
def test_the_real_heads(shape: Shape, capability: int) -> None:
    tiles = Tiles.of(Chip.of(capability), shape.dim, shape.window)
    short = shape.length - 3
    rows = [(40, short, 1, ENCODE, -1), (40 + short, shape.length, 1, DENOISE, 0)]
    drawn = random_pass(shape, rows, 1)
    assert (
        distance(real(drawn, attended(drawn, tiles).values), real(drawn, reference(drawn))) < 1e-2
    )


def test_a_canvas_sees_a_rectangle_and_not_a_band(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = random_pass(RING, [(60, 20, 0, DENOISE, -1)], 5)
    got = attended(drawn, SMALL).values
    assert distance(got, reference(drawn)) < 1e-2

    def band(row: RowNumbers, queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
        assert window is not None
        return (queries[:, None] - keys).abs() < window

    monkeypatch.setattr(attention_reference, "visible", band)
    assert distance(got, reference(drawn)) > 0.1


def test_one_key_more_or_less_shows() -> None:
    drawn = random_pass(RING, [(60, 20, 0, DENOISE, -1)], 6)
    wanted = reference(drawn)
    # The first position of the rectangle, and the one before it, at which the ring has an entry.
    for position, seen in ((60 - 36, True), (60 - 37, False)):
        drawn.pool_v[0, :, position % 37] = 50.0
        assert (distance(attended(drawn, SMALL).values, wanted) > 0.1) is seen
        drawn.pool_v[0, :, position % 37] = 0.0
        wanted = reference(drawn)


def test_lines_are_quantised_by_token() -> None:
    drawn = random_pass(RING, [(30, 20, 0, DENOISE, -1), (0, 0, 0, ENCODE, -1)], 7)
    lines = attended(drawn, SMALL, fp8=True)
    wanted = reference(drawn)[:20]
    assert lines.scale is not None
    got = lines.values.float() * lines.scale[:, None]
    assert distance(got[:20], wanted) < 4e-2
    torch.testing.assert_close(lines.scale[:20], wanted.abs().amax(1) / 448, rtol=1e-2, atol=0)
    assert not got[20:].any()


@pytest.mark.parametrize("fp8", [False, True])
def test_splits_weigh_as_their_exponentials_do(fp8: bool) -> None:
    rows = rows_of(8, [(48, 8, 0, DENOISE, -1)])
    partial = torch.randn(4, 8, 3, 24)
    weight = torch.randn(4, 8, 3) * 4
    constants = {"LENGTH": 8, "WINDOW": 0, "DIM": 24, "DIM_PADDED": 32, "TOKENS": 8}
    blocks = {"BLOCK_N": 16, "LEAST": 1, "MOST": 4}
    got = combine(partial, weight, rows, constants | blocks, fp8=fp8)
    share = torch.softmax(weight * torch.log(torch.tensor(2.0)), 0)
    wanted = (partial * share[..., None]).sum(0).flatten(1)
    if fp8:
        quantized = norms_reference.quantize_rows(wanted)
        assert got.scale is not None
        assert quantized.scale is not None
        torch.testing.assert_close(got.scale, quantized.scale)
        assert distance(got.values, quantized.values) < 1e-2
    else:
        torch.testing.assert_close(got.values, wanted)


def test_one_row_at_2k_of_context_occupies_a_gpu() -> None:
    geometry = named_geometry(DEFAULT)
    for layer in dict.fromkeys(geometry.layers):
        window = None if layer.is_full else geometry.sliding_window
        tiles = Tiles.of(Chip.of(90), layer.head_dim, window)
        keys = geometry.canvas_length + (2048 if window is None else window - 1)
        lines = geometry.canvas_length * geometry.num_attention_heads // tiles.lines
        assert lines * tiles.splits(-(-keys // tiles.keys)) >= 128


def test_heads_without_a_layout_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="head_dim 1024 has no layout of attention; at"):
        Tiles.of(Chip.of(90), 1024, None)


def test_variants_name_every_argument_of_their_kernels() -> None:
    for capability in CAPABILITIES:
        named = list(variants(named_geometry(DEFAULT), Chip.of(capability)))
        assert (
            len({variant.name for variant in named}) == len(named) == (6 if capability > 80 else 4)
        )
        for variant in named:
            arguments = [*variant.signature, *variant.constants]
            assert sorted(arguments) == sorted(variant.kernel.arg_names)
