"""The K/V that rows of a pass attend to, side by side in memory that all its shares read and write.

Knows in which order a row's keys stand there, and copies them from a pool and back; knows nothing
of what computes them or of masks. A canvas stands where it stood a step before: what its slot holds
is copied once, and every step writes the canvas's own K/V to their places behind it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from dgemma.engine.base import Capacity, Row
from dgemma.engine.batch import PassShape
from dgemma.engine.kv_pool import FloatArray, KVPool
from dgemma.geometry import Geometry


class Contexts:
    """K and V of each layer for all rows of a pass, one pass at a time.

    A row's position p stands at p in full layers and at p mod S in the others, of S keys.
    """

    def __init__(self, pool: KVPool, geometry: Geometry, capacity: Capacity) -> None:
        """Only what passes have used of it is taken."""
        self._pool, self._length = pool, geometry.canvas_length
        # Zeros, for what is masked counts with a weight of 0, and 0 times NaN were NaN.
        self._flat = [
            np.zeros(math.prod(shape), np.float32) for shape in self._shapes(geometry, capacity)
        ]
        # Of each row, what stands there: a slot, up to where, and in which state.
        self._stands: list[tuple[int, int, int] | None] = [None] * capacity.rows
        self._arrays: list[FloatArray] = []

    @staticmethod
    def _shapes(geometry: Geometry, capacity: Capacity) -> list[tuple[int, int, int, int]]:
        return [
            (capacity.rows, groups, size + geometry.canvas_length, dim)
            for _, groups, size, dim in KVPool.shapes(geometry, capacity.slots, capacity.context)
        ]

    @classmethod
    def bytes_for(cls, geometry: Geometry, capacity: Capacity) -> int:
        """The most that passes take, without making any."""
        shapes = cls._shapes(geometry, capacity)
        return sum(math.prod(shape) for shape in shapes) * np.dtype(np.float32).itemsize

    def arrays(self, shape: PassShape) -> list[FloatArray]:
        """K, V per layer of passes of this shape, `[R, G, S, d]`, which share their memory."""
        arrays = []
        for flat, kept, is_full in zip(self._flat, self._pool.arrays, self._pool.full, strict=True):
            size = (shape.context if is_full else shape.ring) + self._length
            _, groups, _, dim = kept.shape
            lines = shape.rows * groups * size
            arrays.append(flat[: lines * dim].reshape(shape.rows, groups, size, dim))
        return arrays

    def place(self, rows: Sequence[Row], arrays: list[FloatArray]) -> None:
        """Have `arrays`, from here on those of the pass, hold what the rows' slots hold."""
        if [a.shape[2] for a in arrays] != [a.shape[2] for a in self._arrays]:
            self._stands = [None] * len(self._stands)
        self._arrays = arrays
        for index, row in enumerate(rows):
            stand = (row.slot, row.start, self._pool.versions[row.slot])
            if stand == self._stands[index]:
                continue
            for array, kept, parts in self._parts(row.start, row.start, arrays):
                to, of = array[index], kept[row.slot]
                for here, there in parts:
                    to[:, here] = of[:, there]
            self._stands[index] = stand

    def keep(self, rows: Sequence[Row]) -> None:
        """Write the K/V of the pass's encode rows to their slots."""
        for index, row in enumerate(rows):
            if row.denoise:
                continue
            for array, kept, parts in self._parts(row.end, row.valid, self._arrays):
                to, of = kept[row.slot], array[index]
                for here, there in parts:
                    to[:, there] = of[:, here]
            self._pool.changed(row.slot)

    def _parts(
        self, stop: int, count: int, arrays: list[FloatArray]
    ) -> Iterator[tuple[FloatArray, FloatArray, list[tuple[slice, slice]]]]:
        """Each array with that of the pool, and where the `count` positions before `stop` stand in
        both; of rings, as many of them as these hold.
        """
        window = self._pool.window
        linear = [(slice(stop - count, stop),) * 2]
        rings: dict[int, list[tuple[slice, slice]]] = {}
        for array, kept, is_full in zip(arrays, self._pool.arrays, self._pool.full, strict=True):
            size = array.shape[2]
            if not is_full and size not in rings:
                first = stop - min(count, window)
                rings[size] = list(_in_both(first, stop, size, window))
            yield array, kept, linear if is_full else rings[size]


def _in_both(start: int, stop: int, size: int, other: int) -> Iterator[tuple[slice, slice]]:
    """Where positions stand in a ring of `size` and in one of `other` places.

    Up to three slices: numpy copies those three times as fast as positions one by one.
    """
    while start < stop:
        here, there = start % size, start % other
        count = min(stop - start, size - here, other - there)
        yield slice(here, here + count), slice(there, there + count)
        start += count
