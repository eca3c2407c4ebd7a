"""Keys and values of every slot, in host memory.

Knows the layout (sliding layers are rings of W positions, full layers are linear) and how to write
a committed row; knows nothing of masks: what stands in a pool is masked by position, never trusted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from dgemma.engine.base import Row, Snapshot
from dgemma.geometry import Geometry

FloatArray = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]


class KVPool:
    """K and V arrays of each layer, `[slots, G, W or N, d]` fp32."""

    def __init__(self, geometry: Geometry, slots: int, context: int) -> None:
        self.window = geometry.sliding_window
        shapes = self.shapes(geometry, slots, context)
        self.arrays: list[FloatArray] = [np.zeros(shape, np.float32) for shape in shapes]
        self.full = [layer.is_full for layer in geometry.layers for _ in "kv"]
        self.versions = [0] * slots  # of what each slot holds

    @staticmethod
    def shapes(geometry: Geometry, slots: int, context: int) -> list[tuple[int, ...]]:
        """Of the arrays: K then V of each layer."""
        sizes = [context if layer.is_full else geometry.sliding_window for layer in geometry.layers]
        return [
            (slots, layer.num_key_value_heads, size, layer.head_dim)
            for layer, size in zip(geometry.layers, sizes, strict=True)
            for _ in "kv"
        ]

    @classmethod
    def bytes_for(cls, geometry: Geometry, slots: int, context: int) -> int:
        """What a pool takes, without making one."""
        shapes = cls.shapes(geometry, slots, context)
        return sum(math.prod(shape) for shape in shapes) * np.dtype(np.float32).itemsize

    def changed(self, slot: int) -> None:
        """Copies of what this slot holds are out of date."""
        self.versions[slot] += 1

    def write(self, rows: Sequence[Row], fresh: Sequence[FloatArray]) -> None:
        """Keep the K/V of the encode rows; `fresh` is K, V per layer, `[R, G, L, d]`."""
        for index, row in enumerate(rows):
            if row.denoise:
                continue
            # Of a row longer than the window only the last W tokens have a place in the ring.
            skip = max(0, row.valid - self.window)
            linear = [(slice(row.start, row.end), slice(row.valid))]
            ring = list(_in_ring(row.start + skip, row.end, self.window, skip))
            for array, full, new in zip(self.arrays, self.full, fresh, strict=True):
                kept, given = array[row.slot], new[index]
                for to, of in linear if full else ring:
                    kept[:, to] = given[:, of]
            self.changed(row.slot)

    def read(self, slot: int, start: int, stop: int) -> Snapshot:
        """Copies of positions of a slot, `[G, n, d]` each; of rings, of the last W of them."""
        linear, ring = self._places(start, stop)
        parts = [
            array[slot][:, linear if full else ring]
            for array, full in zip(self.arrays, self.full, strict=True)
        ]
        return Snapshot(start, stop, parts, sum(part.nbytes for part in parts))

    def put(self, slot: int, snapshot: Snapshot) -> None:
        """Write what `read` has copied to its positions in this slot."""
        linear, ring = self._places(snapshot.start, snapshot.stop)
        for array, full, part in zip(self.arrays, self.full, snapshot.parts, strict=True):
            array[slot][:, linear if full else ring] = part
        self.changed(slot)

    def _places(self, start: int, stop: int) -> tuple[Places, Places]:
        """Where positions live in full layers and in rings."""
        return np.arange(start, stop), np.arange(max(start, stop - self.window), stop) % self.window


def _in_ring(start: int, stop: int, size: int, first: int) -> Iterator[tuple[slice, slice]]:
    """Where at most `size` positions stand in a ring, and in a row whose token `first` is `start`.

    Up to two slices: numpy copies those three times as fast as positions one by one.
    """
    while start < stop:
        place = start % size
        count = min(stop - start, size - place)
        yield slice(place, place + count), slice(first, first + count)
        start, first = start + count, first + count
