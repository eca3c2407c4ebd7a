"""Keys and values of every slot, in host memory.

Knows the layout (sliding layers are rings of W positions, full layers are linear) and how to write
a committed row; knows nothing of masks: what stands in a pool is masked by position, never trusted.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        self.arrays: list[FloatArray] = []
        self.full: list[bool] = []
        for layer in geometry.layers:
            size = context if layer.is_full else self.window
            shape = (slots, layer.num_key_value_heads, size, layer.head_dim)
            self.arrays += [np.zeros(shape, np.float32) for _ in "kv"]
            self.full += [layer.is_full] * 2

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    def write(self, rows: Sequence[Row], fresh: Sequence[FloatArray]) -> None:
        """Keep the K/V of the encode rows; `fresh` is K, V per layer, `[R, G, L, d]`."""
        for index, row in enumerate(rows):
            if row.denoise:
                continue
            linear = np.arange(row.start, row.end)
            # Of a row longer than the window only the last W tokens have a place in the ring.
            skip = max(0, row.valid - self.window)
            ring = linear[skip:] % self.window
            for array, full, new in zip(self.arrays, self.full, fresh, strict=True):
                if full:
                    array[row.slot, :, row.start : row.end] = new[index, :, : row.valid]
                else:
                    array[row.slot][:, ring] = new[index, :, skip : row.valid]

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

    def _places(self, start: int, stop: int) -> tuple[Places, Places]:
        """Where positions live in full layers and in rings."""
        return np.arange(start, stop), np.arange(max(start, stop - self.window), stop) % self.window
