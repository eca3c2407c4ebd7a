"""Where keys stand beside each other, from the slots of a pool and back to them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgemma.engine.base import Capacity, Row
from dgemma.engine.batch import PassShape
from dgemma.engine.contexts import Contexts
from dgemma.engine.kv_pool import FloatArray, KVPool
from dgemma.geometry import FULL, SLIDING, Geometry
from tests.dgemma.engine.fake_engine import geometry_of

L = 8
CAPACITY = Capacity(slots=3, context=64, rows=4)


class Bench:
    """A pool of random numbers and what is made of it."""

    def __init__(self, window: int) -> None:
        self.geometry: Geometry = geometry_of(sliding_window=window, layer_types=(SLIDING, FULL))
        self.pool = KVPool(self.geometry, CAPACITY.slots, CAPACITY.context)
        self.generator = np.random.default_rng(0)
        self.contexts = Contexts(self.pool, self.geometry, CAPACITY)
        for slot in range(CAPACITY.slots):
            self.fill(slot)

    def fill(self, slot: int) -> None:
        for array in self.pool.arrays:
            array[slot] = self.generator.standard_normal(array.shape[1:])
        self.pool.changed(slot)

    def placed(self, *rows: Row) -> list[FloatArray]:
        arrays = self.contexts.arrays(PassShape.of(rows, self.geometry, CAPACITY))
        self.contexts.place(rows, arrays)
        return arrays

    def check(self, *rows: Row) -> None:
        """Every position before a row stands where it belongs, or is older than the window."""
        for array, kept, full in zip(
            self.placed(*rows), self.pool.arrays, self.pool.full, strict=True
        ):
            size = array.shape[2]
            for index, row in enumerate(rows):
                for position in range(
                    0 if full else max(0, row.start - self.pool.window), row.start
                ):
                    here = array[index, :, position if full else position % size]
                    there = kept[row.slot, :, position if full else position % self.pool.window]
                    assert np.array_equal(here, there), (full, index, position)


def canvas(slot: int, start: int) -> Row:
    return Row(torch.zeros(L, dtype=torch.int64), slot, start, L, True)


def chunk(slot: int, start: int, valid: int = L) -> Row:
    return Row(torch.zeros(L, dtype=torch.int64), slot, start, valid, False)


rows = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 64)).map(lambda at: canvas(*at)),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, derandomize=True)
@given(st.integers(2, 3 * L), st.lists(st.tuples(rows, st.integers(0, 3)), min_size=1, max_size=6))
def test_what_a_slot_holds_stands_before_its_rows(
    window: int, passes: list[tuple[list[Row], int]]
) -> None:
    """Pass after pass, some of whose rows stand where they stood, in slots that change or not."""
    bench = Bench(window)
    for each, changed in passes:
        if changed < CAPACITY.slots:
            bench.fill(changed)
        bench.check(*each)


def test_a_slot_that_was_written_or_restored_is_copied_again() -> None:
    bench = Bench(window=6)
    row = canvas(1, 2 * L)
    bench.check(row)
    made = [np.full((1, *a.shape[1:2], L, a.shape[3]), 7.0, np.float32) for a in bench.pool.arrays]
    bench.pool.write([chunk(1, L)], made)
    bench.check(row)
    bench.pool.put(1, bench.pool.read(0, 0, 2 * L))
    bench.check(row)


def test_a_row_that_stands_where_it_stood_is_not_copied_again() -> None:
    bench = Bench(window=6)
    arrays = bench.placed(canvas(0, L), canvas(1, L))
    for array in arrays:
        array[:] = 0.0
    for array in bench.placed(canvas(0, L), canvas(1, L + 1)):
        assert not array[0].any() and array[1].any()


@settings(deadline=None, derandomize=True)
@given(
    st.integers(2, 3 * L),
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, L)), min_size=1, max_size=8),
)
def test_encode_rows_are_kept_as_a_pool_keeps_them(
    window: int, writes: list[tuple[int, int]]
) -> None:
    bench, other = Bench(window), Bench(window)
    ends = [0] * CAPACITY.slots
    for slot, valid in writes:
        each = [chunk(slot, ends[slot], valid), canvas(2 - slot, 5)]
        made = [
            bench.generator.standard_normal((2, a.shape[1], L, a.shape[3]))
            for a in bench.pool.arrays
        ]
        for array, full, new in zip(bench.placed(*each), bench.pool.full, made, strict=True):
            for token in range(L):
                place = ends[slot] + token
                array[0, :, place if full else place % array.shape[2]] = new[0, :, token]
        before = list(bench.pool.versions)
        bench.contexts.keep(each)
        other.pool.write(each, [new.astype(np.float32) for new in made])
        assert [i for i, v in enumerate(bench.pool.versions) if v != before[i]] == [slot]
        ends[slot] += valid
    for ours, theirs in zip(bench.pool.arrays, other.pool.arrays, strict=True):
        assert np.array_equal(ours, theirs)


def test_what_is_taken_at_most_is_said_before() -> None:
    bench = Bench(window=6)
    most = [canvas(i % 3, CAPACITY.context) for i in range(CAPACITY.rows)]
    taken = sum(array.nbytes for array in bench.placed(*most))
    assert Contexts.bytes_for(bench.geometry, CAPACITY) == taken


@pytest.mark.parametrize("window", [2, L - 1, 2 * L])
def test_arrays_of_all_shapes_share_their_memory(window: int) -> None:
    bench = Bench(window)
    few, many = bench.placed(canvas(0, 0)), bench.placed(*[canvas(0, L)] * 4)
    assert all(np.shares_memory(a, b) for a, b in zip(few, many, strict=True))
