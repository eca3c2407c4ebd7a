from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dgemma.engine.base import Row
from dgemma.engine.device_pools import write_rows
from dgemma.engine.kernels import attention_reference
from dgemma.engine.kernels.keep import keep
from dgemma.geometry import FULL, SLIDING, LayerGeometry
from tests.dgemma.engine.fake_engine import geometry_of
from tests.dgemma.engine.kernels.passes import Shape, random_pass, random_rows, tuples_of

SHAPES = [
    Shape(heads=4, groups=2, dim=24, length=20, window=37, places=90),
    Shape(heads=4, groups=2, dim=16, length=20, window=9, places=90),
    Shape(heads=4, groups=1, dim=512, length=9, window=None, places=40),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_of_encode_rows_go_where_engines_look_for_them(shape: Shape) -> None:
    drawn = random_pass(shape, random_rows(shape.length, shape.places, 0), 0)
    fresh, pools = (drawn.k, drawn.v), (drawn.pool_k, drawn.pool_v)
    kernels = [pool.clone() for pool in pools]
    keep(*fresh, *kernels, drawn.rows, window=shape.window)
    plain = [pool.clone() for pool in pools]
    attention_reference.keep(*fresh, *plain, drawn.rows, window=shape.window)
    engines = [pool.clone() for pool in pools]
    layer = LayerGeometry(SLIDING if shape.window else FULL, shape.dim, shape.groups)
    geometry = replace(geometry_of(canvas_length=shape.length), layers=(layer,))
    rows = [
        Row(torch.empty(0), slot, start, valid, bool(mode))
        for start, valid, slot, mode, _ in tuples_of(drawn.rows)
    ]
    by_row = [x.unflatten(0, (-1, shape.length)).transpose(1, 2).contiguous() for x in fresh]
    write_rows(geometry, rows, by_row, engines)
    for got, reference, engine, before in zip(kernels, plain, engines, pools, strict=True):
        assert torch.equal(got.view(torch.int16), engine.view(torch.int16))
        assert torch.equal(reference.view(torch.int16), engine.view(torch.int16))
        assert not torch.equal(got.view(torch.int16), before.view(torch.int16))
