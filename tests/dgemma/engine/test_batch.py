from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dgemma.engine.base import Capacity, Row
from dgemma.engine.batch import (
    KEY_STEP,
    PassShape,
    allocate,
    check,
    context_of,
    fill,
    to_arrays,
)
from dgemma.engine.graph import ROW_INPUTS
from dgemma.errors import EngineFailure
from tests.dgemma.engine.fake_engine import geometry_of

L = 8
GEOMETRY = geometry_of(canvas_length=L, hidden_size=5)
CAPACITY = Capacity(slots=3, context=400, rows=4)


def row(start: int = 0, **overrides: Any) -> Row:
    values: dict[str, Any] = {
        "ids": torch.arange(L),
        "slot": 1,
        "start": start,
        "valid": L,
        "denoise": False,
    }
    return Row(**values | overrides)


def arrays(*rows: Row, capacity: Capacity = CAPACITY) -> dict[str, Any]:
    return to_arrays(rows, GEOMETRY, capacity)


FUSED = (row(16, valid=5), row(21, denoise=True, partner=0))


# What a pass may be


@pytest.mark.parametrize(
    "rows",
    [
        (row(),),
        (row(0, valid=1),),
        (row(400 - L),),
        (row(400, denoise=True),),  # a canvas keeps nothing
        FUSED,
        (row(0, slot=0), row(0, slot=2), *(row(8, denoise=True), row(0, slot=1))),
    ],
)
def test_a_pass_that_may_be_run(rows: tuple[Row, ...]) -> None:
    check(rows, GEOMETRY, CAPACITY)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "1 to 4 rows, got 0"),
        ((row(),) * 5, "1 to 4 rows, got 5"),
        ((row(), row(ids=torch.arange(L - 1))), "row 1: 7 tokens"),
        ((row(ids=torch.arange(L + 1)),), "row 0: 9 tokens"),
        ((row(valid=0),), "row 0: 8 tokens, 0 of them valid"),
        ((row(valid=L + 1),), "9 of them valid"),
        ((row(slot=3),), "row 0: slot 3 of 3"),
        ((row(slot=-1),), "slot -1 of 3"),
        ((row(400 - L + 1),), "ends at 401, beyond 400"),
        ((row(0, denoise=True), row(L, denoise=True, partner=0)), "row 0 cannot be its partner"),
        ((row(0), row(L, slot=2, denoise=True, partner=0)), "row 0 cannot be its partner"),
        ((row(0), row(L + 1, denoise=True, partner=0)), "row 0 cannot be its partner"),
        ((row(0, valid=5), row(L, denoise=True, partner=0)), "row 0 cannot be its partner"),
    ],
)
def test_a_schedulers_mistake_is_an_engine_failure(rows: tuple[Row, ...], message: str) -> None:
    with pytest.raises(EngineFailure, match=message):
        check(rows, GEOMETRY, CAPACITY)


# The graph's inputs


def test_the_arrays_are_the_graphs_inputs() -> None:
    got = arrays(*FUSED)
    assert tuple(got) == ROW_INPUTS
    for name, array in got.items():
        wanted = {"soft": np.float32, "denoise": np.bool_}.get(name, np.int64)
        assert array.dtype == wanted, name


def test_rows_become_columns_of_integers() -> None:
    got = arrays(row(8, slot=2), row(30, slot=0, denoise=True))
    assert got["ids"].tolist() == [list(range(L))] * 2
    assert got["denoise"].tolist() == [False, True]
    assert got["start"].tolist() == [8, 30]
    assert got["valid"].tolist() == [L, L]
    assert got["slot"].tolist() == [2, 0]
    assert got["pair_from"].tolist() == got["pair_to"].tolist() == []


def test_pairs_are_named_by_both_their_rows() -> None:
    other = (row(0, slot=0, valid=3), row(3, slot=0, denoise=True, partner=0))
    mixed = (other[0], row(9, slot=2), FUSED[0], other[1], FUSED[1]._replace(partner=2))
    got = arrays(*mixed, capacity=Capacity(3, 400, 5))
    assert got["pair_from"].tolist() == [0, 2]
    assert got["pair_to"].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("longest", "keys"),
    [
        (0, 64),
        (1, 64),
        (56, 64),
        (57, 128),
        (120, 128),
        (121, 192),
        (312, 320),
        (313, 384),
        (377, 408),
        (400, 408),
    ],
)
def test_keys_come_in_steps_and_never_beyond_the_capacity(longest: int, keys: int) -> None:
    assert KEY_STEP == 64
    got = arrays(row(3, denoise=True), row(longest, denoise=True))["context_index"]
    assert got.tolist() == list(range(keys - L))


@pytest.mark.parametrize(("longest", "read"), [(0, 6), (5, 6), (6, 6), (300, 6)])
def test_a_ring_is_never_read_beyond_the_window(longest: int, read: int) -> None:
    assert arrays(row(longest))["ring_index"].tolist() == list(range(read))


def test_rows_as_long_as_a_step_have_a_context_too() -> None:
    """What has no length is nothing that every runtime can bind."""
    assert context_of(length=KEY_STEP, longest=0, most=400) == KEY_STEP
    assert context_of(length=KEY_STEP, longest=1, most=400) == KEY_STEP
    assert context_of(length=2 * KEY_STEP, longest=2 * KEY_STEP, most=100) == 100


def test_a_pool_shorter_than_a_step_is_read_whole() -> None:
    got = arrays(row(), capacity=Capacity(3, 40, 4))["context_index"]
    assert got.tolist() == list(range(40))


def test_a_row_without_belief_has_a_soft_embedding_of_zeros() -> None:
    soft = torch.rand(L, 5)
    got = arrays(row(), row(8, denoise=True, soft=soft), row(8, denoise=True))["soft"]
    assert got.shape == (3, L, 5)
    assert np.array_equal(got[1], soft.numpy())
    assert not got[[0, 2]].any()


def test_arrays_that_held_another_pass_hold_nothing_of_it() -> None:
    first = (row(8, slot=2), row(30, slot=0, denoise=True, soft=torch.rand(L, 5)))
    second = (row(9, slot=1, denoise=True, soft=torch.rand(L, 5)), row(0, valid=3))
    shape = PassShape.of(first, GEOMETRY, CAPACITY)
    assert shape == PassShape.of(second, GEOMETRY, CAPACITY)
    used = allocate(shape, GEOMETRY)
    fill(used, first)
    fill(used, second)
    for name, array in arrays(*second).items():
        assert np.array_equal(used[name], array), name


def test_passes_of_other_sizes_have_other_shapes() -> None:
    passes = [
        (row(),),
        (row(), row(slot=2)),
        (row(200),),
        FUSED,
    ]
    assert len({PassShape.of(rows, GEOMETRY, CAPACITY) for rows in passes}) == len(passes)
