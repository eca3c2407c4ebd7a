"""Rows as the arrays that the network's graph takes.

Knows the graph's inputs by name; knows nothing of what runs it.
Shapes: R rows, L row length, D hidden size, N context positions read, C expert capacity.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dgemma.engine.base import NO_PARTNER, Capacity, Row
from dgemma.errors import EngineFailure
from dgemma.geometry import Geometry

# Context lengths are rounded up to this, so that few shapes occur and rows stay bit-identical
# whatever their neighbours' context is.
CONTEXT_STEP = 128

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


def context_of(rows: Sequence[Row], row: Row) -> int:
    """Tokens of the slot's pool that a row sees: those before its partner, or before itself."""
    return row.start if row.partner == NO_PARTNER else rows[row.partner].start


def to_arrays(rows: Sequence[Row], geometry: Geometry, capacity: Capacity) -> Arrays:
    """The graph's inputs but for `room` and the pools; names are those of `RowIndex`."""
    length = geometry.canvas_length
    soft = np.zeros((len(rows), length, geometry.hidden_size), np.float32)
    for index, row in enumerate(rows):
        if row.soft is not None:
            soft[index] = row.soft.numpy()
    context = np.array([context_of(rows, row) for row in rows], np.int64)
    longest = -(-max(1, int(context.max())) // CONTEXT_STEP) * CONTEXT_STEP
    paired = any(row.partner != NO_PARTNER for row in rows)
    return {
        "ids": np.stack([row.ids.numpy() for row in rows]),
        "soft": soft,
        "denoise": np.array([row.denoise for row in rows]),
        "start": np.array([row.start for row in rows], np.int64),
        "valid": np.array([row.valid for row in rows], np.int64),
        "context": context,
        "slot": np.array([row.slot for row in rows], np.int64),
        "partner": np.array([row.partner for row in rows], np.int64),
        "context_index": np.arange(min(longest, capacity.context)),
        "partner_index": np.arange(length if paired else 0),
    }
