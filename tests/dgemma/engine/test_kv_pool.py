from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgemma.engine.base import Row
from dgemma.engine.kv_pool import FloatArray, KVPool
from dgemma.geometry import FULL, SLIDING
from tests.dgemma.engine.fake_engine import geometry_of

SLOTS, CONTEXT, L = 3, 64, 8
SLIDING_K, SLIDING_V, FULL_K, FULL_V = range(4)


def pool(window: int = 6) -> KVPool:
    geometry = geometry_of(sliding_window=window, layer_types=(SLIDING, FULL))
    return KVPool(geometry, SLOTS, CONTEXT)


def row(start: int, valid: int = L, slot: int = 1, denoise: bool = False) -> Row:
    return Row(torch.zeros(L, dtype=torch.int64), slot, start, valid, denoise)


def fresh(of: KVPool, rows: list[Row], request: int = 0) -> list[FloatArray]:
    """K/V whose numbers say where they belong; what is not valid says so, too."""
    arrays: list[FloatArray] = []
    for kind, array in enumerate(of.arrays):
        heads, dim = array.shape[1], array.shape[3]
        value = np.full((len(rows), heads, L, dim), -7.0, np.float32)
        for index, each in enumerate(rows):
            for at in range(each.valid):
                for head in range(heads):
                    value[index, head, at] = number(request, kind, head, each.start + at)
        arrays.append(value)
    return arrays


def number(request: int, kind: int, head: int, position: int) -> float:
    return 1000 * (10 * request + kind) + 100 * head + position


def check_holds(of: KVPool, slot: int, end: int, request: int = 0) -> None:
    """The last W positions in the rings and all of them in the full layers."""
    for kind, array in enumerate(of.arrays):
        first = 0 if of.full[kind] else max(0, end - of.window)
        for position in range(first, end):
            at = position if of.full[kind] else position % of.window
            for head in range(array.shape[1]):
                assert (array[slot, head, at] == number(request, kind, head, position)).all()


def test_layers_have_arrays_of_their_own_sizes() -> None:
    shapes = [array.shape for array in pool(window=6).arrays]
    assert shapes == [(3, 2, 6, 4), (3, 2, 6, 4), (3, 1, 64, 6), (3, 1, 64, 6)]
    geometry = geometry_of(sliding_window=6, layer_types=(SLIDING, FULL))
    made = sum(array.nbytes for array in pool(window=6).arrays)
    assert KVPool.bytes_for(geometry, SLOTS, CONTEXT) == made


@pytest.mark.parametrize("window", [2, 5, L - 1, L, L + 1, 2 * L, 3 * L + 1])
def test_position_p_lives_at_p_mod_the_window(window: int) -> None:
    of = pool(window)
    for start in range(0, 4 * L, L):
        of.write([row(start)], fresh(of, [row(start)]))
        check_holds(of, 1, start + L)


@settings(deadline=None, derandomize=True)
@given(
    st.integers(2, 3 * L),
    st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(1, L)), min_size=1, max_size=12),
)
def test_any_rows_of_any_slots(window: int, writes: list[tuple[int, int]]) -> None:
    of, ends = pool(window), [0] * SLOTS
    for slot, valid in writes:
        if ends[slot] + valid > CONTEXT:
            continue
        rows = [row(ends[slot], valid, slot)]
        of.write(rows, fresh(of, rows, request=slot))
        ends[slot] += valid
    for slot, end in enumerate(ends):
        check_holds(of, slot, end, request=slot)


def test_nothing_is_written_beyond_the_valid_tokens() -> None:
    of = pool(window=6)
    rows = [row(0, valid=3)]
    of.write(rows, fresh(of, rows))
    assert all((array != -7).all() for array in of.arrays)
    assert (of.arrays[FULL_K][1, :, 3:] == 0).all()
    assert (of.arrays[SLIDING_K][1, :, 3:] == 0).all()


def test_denoise_rows_leave_no_trace() -> None:
    of = pool()
    rows = [row(0, denoise=True), row(0, slot=2), row(L, slot=2, denoise=True)]
    of.write(rows, fresh(of, rows))
    assert all((array[[0, 1]] == 0).all() for array in of.arrays)
    check_holds(of, 2, L)
    assert (of.arrays[FULL_V][2, :, L:] == 0).all()


def test_rows_of_one_pass_go_to_their_own_slots() -> None:
    of = pool()
    rows = [row(0, slot=2), row(0, slot=0, valid=5)]
    of.write(rows, fresh(of, rows))
    check_holds(of, 2, L)
    check_holds(of, 0, 5)
    assert all((array[1] == 0).all() for array in of.arrays)


# Copies


@settings(deadline=None, derandomize=True)
@given(st.integers(2, 3 * L), st.integers(1, 5), st.integers(0, L - 1))
def test_copies_of_blocks_make_another_slot_hold_the_same(
    window: int, blocks: int, behind: int
) -> None:
    """Taken when each block is complete, or as late as the ring allows."""
    of = pool(window)
    if behind > window - L:
        behind = 0
    copies = []
    for block in range(blocks):
        rows = [row(block * L)]
        of.write(rows, fresh(of, rows))
        if behind:
            rows = [row((block + 1) * L, behind)]
            of.write(rows, fresh(of, rows))
        copies.append(of.read(1, block * L, (block + 1) * L))
    rows = [row(0, slot=2)]
    of.write(rows, fresh(of, rows, request=5))  # what another request has left
    for copy in copies:
        of.put(2, copy)
    check_holds(of, 2, blocks * L)


def test_a_copy_stays_what_it_was_when_its_slot_is_written_again() -> None:
    of = pool(window=L)
    rows = [row(0)]
    of.write(rows, fresh(of, rows))
    copy = of.read(1, 0, L)
    of.write(rows, fresh(of, rows, request=3))
    of.put(0, copy)
    check_holds(of, 0, L)
    check_holds(of, 1, L, request=3)
    assert copy.nbytes == sum(part.nbytes for part in copy.parts)
