"""Rows as the arrays that the network's graph takes.

Knows the graph's inputs by name; knows nothing of what runs it.
Shapes: R rows, P pairs of an encode row and the denoise row behind it, L row length, D hidden size,
N context positions read, C expert capacity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dgemma.engine.base import NO_PARTNER, Capacity, Row
from dgemma.errors import EngineFailure
from dgemma.geometry import Geometry

# The keys of a row, its own and its context's, are a multiple of this: few shapes occur, and no
# kernel's block of keys ends elsewhere because a neighbour has more of them, which would move bits.
KEY_STEP = 64

Arrays = dict[str, npt.NDArray[np.generic]]


def check(rows: Sequence[Row], geometry: Geometry, capacity: Capacity) -> None:
    """Raise EngineFailure for a pass that no engine may run: a scheduler's mistake."""
    if not 0 < len(rows) <= capacity.rows:
        raise EngineFailure(f"a pass has 1 to {capacity.rows} rows, got {len(rows)}")
    for index, row in enumerate(rows):
        if len(row.ids) != geometry.canvas_length or not 0 < row.valid <= geometry.canvas_length:
            raise EngineFailure(f"row {index}: {len(row.ids)} tokens, {row.valid} of them valid")
        if not 0 <= row.slot < capacity.slots:
            raise EngineFailure(f"row {index}: slot {row.slot} of {capacity.slots}")
        if not row.denoise and row.end > capacity.context:
            raise EngineFailure(f"row {index}: ends at {row.end}, beyond {capacity.context}")
        if row.partner != NO_PARTNER:
            partner = rows[row.partner]
            if partner.denoise or partner.slot != row.slot or partner.end != row.start:
                raise EngineFailure(f"row {index}: row {row.partner} cannot be its partner")


def context_of(length: int, longest: int, most: int) -> int:
    """Context positions that a pass reads for rows of `length` tokens behind `longest` others.

    At least one, which a row without context masks, and at most the `most` that a pool has.
    """
    context = -(-(length + longest) // KEY_STEP) * KEY_STEP - length
    return min(context or KEY_STEP, most)


@dataclass(frozen=True)
class PassShape:
    """The sizes of a pass; passes of one shape can share their arrays."""

    rows: int
    pairs: int  # P
    context: int  # N of full layers
    ring: int  # N of sliding layers

    @classmethod
    def of(cls, rows: Sequence[Row], geometry: Geometry, capacity: Capacity) -> PassShape:
        longest = max(row.start for row in rows)
        length = geometry.canvas_length
        return cls(
            len(rows),
            sum(row.partner != NO_PARTNER for row in rows),
            context_of(length, longest, capacity.context),
            context_of(length, longest, geometry.sliding_window),
        )


def allocate(shape: PassShape, geometry: Geometry) -> Arrays:
    """The graph's inputs but for `room` and the pools, to be filled; names as in `RowIndex`."""
    size = (shape.rows, geometry.canvas_length)
    one_each = ("start", "valid", "slot")
    return {
        "ids": np.zeros(size, np.int64),
        "soft": np.zeros((*size, geometry.hidden_size), np.float32),
        "denoise": np.zeros(shape.rows, np.bool_),
        **{name: np.zeros(shape.rows, np.int64) for name in one_each},
        **{name: np.zeros(shape.pairs, np.int64) for name in ("pair_from", "pair_to")},
        "context_index": np.arange(shape.context),
        "ring_index": np.arange(shape.ring),
    }


def fill(arrays: Arrays, rows: Sequence[Row]) -> None:
    """Describe `rows` in arrays of their shape, whatever these held before."""
    fill_contents(arrays, rows)
    fill_index(arrays, rows)


def fill_contents(arrays: Arrays, rows: Sequence[Row]) -> None:
    """What stands in the rows' tokens."""
    # One call for all rows: whatever comes behind a pass runs on cold caches.
    torch.stack([row.ids for row in rows], out=torch.from_numpy(arrays["ids"]))
    soft = [row.soft for row in rows if row.soft is not None]
    if len(soft) == len(rows):
        torch.stack(soft, out=torch.from_numpy(arrays["soft"]))
        return
    for array, row in zip(arrays["soft"], rows, strict=True):
        array[:] = 0.0 if row.soft is None else row.soft.numpy()


def fill_index(arrays: Arrays, rows: Sequence[Row]) -> None:
    """Where the rows stand."""
    for index, row in enumerate(rows):
        arrays["denoise"][index] = row.denoise
        arrays["start"][index] = row.start
        arrays["valid"][index] = row.valid
        arrays["slot"][index] = row.slot
    if len(arrays["pair_to"]):
        paired = [index for index, row in enumerate(rows) if row.partner != NO_PARTNER]
        arrays["pair_to"][:] = paired
        arrays["pair_from"][:] = [rows[index].partner for index in paired]


def to_arrays(rows: Sequence[Row], geometry: Geometry, capacity: Capacity) -> Arrays:
    """The graph's inputs but for `room` and the pools, of one pass."""
    arrays = allocate(PassShape.of(rows, geometry, capacity), geometry)
    fill(arrays, rows)
    return arrays
