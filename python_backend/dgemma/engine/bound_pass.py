"""Arrays that onnxruntime reads and writes in place, for all passes of one shape.

Knows how buffers are bound to a session; knows neither what a pass computes nor when it is run.
Binding costs more than a small pass's share of the host's time, so it is done once a shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dgemma.engine.base import Row
from dgemma.engine.batch import PassShape, allocate, fill
from dgemma.engine.graph import fresh_names
from dgemma.engine.kv_pool import FloatArray
from dgemma.geometry import Geometry
from dgemma.ort import ort


class BoundPass:
    """One shape's inputs and outputs; what `run` returns is valid until it is called again."""

    def __init__(
        self,
        session: ort.InferenceSession,
        pools: Mapping[str, ort.OrtValue],
        shape: PassShape,
        geometry: Geometry,
    ) -> None:
        self._session, self._io = session, session.io_binding()
        self._arrays = allocate(shape, geometry)
        wanted = {value.name for value in session.get_inputs()}
        self._has_room = "room" in wanted
        self._room = np.arange(0)
        # Values that share memory with arrays; a binding alone keeps neither alive.
        self._values: list[ort.OrtValue] = []
        for name, array in self._arrays.items():
            if name in wanted:
                self._io.bind_ortvalue_input(name, self._value(array))
        for name, pool in pools.items():
            self._io.bind_ortvalue_input(name, pool)
        length = geometry.canvas_length
        self.hidden: FloatArray = np.empty((shape.rows, length, geometry.hidden_size), np.float32)
        self._load: NDArray[np.int64] = np.zeros((), np.int64)
        self.fresh: list[FloatArray] = []
        self._io.bind_ortvalue_output("hidden", self._value(self.hidden))
        self._io.bind_ortvalue_output("load", self._value(self._load))
        if shape.encodes:
            heads = [(layer.num_key_value_heads, layer.head_dim) for layer in geometry.layers]
            sizes = [(shape.rows, g, length, d) for g, d in heads for _ in "kv"]
            self.fresh = [np.empty(size, np.float32) for size in sizes]
            for name, array in zip(fresh_names(geometry), self.fresh, strict=True):
                self._io.bind_ortvalue_output(name, self._value(array))

    def run(self, rows: Sequence[Row], room: int) -> int:
        """Compute `hidden` and, of passes that encode, `fresh`; the largest expert load."""
        fill(self._arrays, rows)
        if self._has_room and room != len(self._room):  # dense experts have no capacity
            self._room = np.arange(room)
            self._io.bind_cpu_input("room", self._room)
        self._session.run_with_iobinding(self._io)
        return int(self._load)

    def _value(self, array: NDArray[np.generic]) -> ort.OrtValue:
        value = ort.OrtValue.ortvalue_from_numpy(array)
        self._values.append(value)
        return value
