from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dgemma.engine.kernels.attention_reference import attend, normed_heads, rotary_table
from dgemma.engine.kernels.rows import PassRows
from dgemma.geometry import FULL, SLIDING, Geometry, LayerGeometry
from dgemma.model.attention import Attention, Keys, RowIndex, build_keys
from tests.dgemma.engine.fake_engine import geometry_of
from tests.dgemma.engine.kernels.passes import Pass, Shape, random_pass, random_rows

PLACES = 61


def geometry(length: int, window: int, layer: LayerGeometry) -> Geometry:
    whole = geometry_of(canvas_length=length, sliding_window=window)
    return replace(whole, num_attention_heads=4, layers=(layer,), hidden_size=4 * layer.head_dim)


def index_of(rows: PassRows, window: int) -> RowIndex:
    partner = rows.partner.long()
    longest = int(rows.start.max()) + rows.length
    return RowIndex(
        rows.denoise,
        rows.start.long(),
        rows.valid.long(),
        rows.slot.long(),
        partner[partner >= 0],
        torch.nonzero(partner >= 0)[:, 0],
        torch.arange(min(longest, PLACES)),
        torch.arange(min(longest, window)),
    )


def case(seed: int, kind: str, length: int, window: int) -> tuple[Pass, Attention, Keys]:
    layer = LayerGeometry(kind, 16, 2)
    whole = geometry(length, window, layer)
    sliding = None if layer.is_full else window
    shape = Shape(4, 2, 16, length, sliding, PLACES)
    listed = random_rows(length, PLACES, seed)[:-1]  # the network has no rows without a token
    drawn = random_pass(shape, listed, seed, torch.float32)
    # The network masks what it reads, where the kernels do not read it.
    drawn = replace(drawn, pool_k=drawn.pool_k.nan_to_num(7), pool_v=drawn.pool_v.nan_to_num(7))
    rope = whole.rope(layer)
    table = torch.tensor(rope.inverse_frequencies(16))
    attention = Attention(whole, layer)
    for parameter in attention.parameters():
        noise = torch.Generator().manual_seed(parameter.numel() + seed)
        parameter.data = torch.randn(parameter.shape, generator=noise) / 4
    attention.o_proj.weight.data = torch.eye(4 * 16)
    keys = build_keys(whole, layer, index_of(drawn.rows, window), drawn.pool_k.shape[2], table)
    return drawn, attention, keys


def by_row(x: Tensor, length: int) -> Tensor:
    return x.unflatten(0, (-1, length)).transpose(1, 2)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("kind", "length", "window"), [(FULL, 7, 5), (SLIDING, 7, 23), (SLIDING, 9, 4), (SLIDING, 8, 9)]
)
@torch.no_grad()
def test_the_reference_is_the_networks_attention(
    kind: str, length: int, window: int, seed: int
) -> None:
    drawn, attention, keys = case(seed, kind, length, window)
    q, k, v = (by_row(x, length) for x in (drawn.q, drawn.k, drawn.v))
    wanted = attention(q, k, v, keys, drawn.pool_k, drawn.pool_v)
    got = attend(*drawn.operands, window=drawn.shape.window, context=drawn.context)
    for index in range(drawn.rows.count):
        real = slice(index * length, index * length + int(drawn.rows.valid[index]))
        expected = wanted[index, : real.stop - real.start]
        torch.testing.assert_close(got.values[real], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [FULL, SLIDING])
@torch.no_grad()
def test_heads_are_those_of_the_network(kind: str) -> None:
    drawn, attention, keys = case(3, kind, 7, 5)
    h = torch.randn(drawn.rows.count, 7, 64)
    products = [attention.q_proj, attention.k_proj, attention.v_proj]
    lines = torch.cat([product(h).flatten(0, 1) for product in products if product], 1)
    layer = LayerGeometry(kind, 16, 2)
    table = torch.tensor(geometry(7, 5, layer).rope(layer).inverse_frequencies(16))
    got = normed_heads(
        lines,
        attention.q_norm.weight,
        attention.k_norm.weight,
        rotary_table(drawn.rows, table),
        heads=4,
        groups=2,
        eps=attention.q_norm.eps,
    )
    for mine, theirs in zip(got, attention.project(h, keys), strict=True):
        torch.testing.assert_close(by_row(mine, 7), theirs, rtol=1e-5, atol=1e-5)
