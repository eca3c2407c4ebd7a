"""Arrays that onnxruntime reads and writes in place, for all passes of one shape.

Knows how buffers are bound to sessions, which of them the shares of a pass have in common, and what
needs no computing again where rows stand as they did; knows neither what a pass computes nor when
it is run. Binding costs more than a small pass's share of the host's time, so it is done once a
shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dgemma.crew import Crew
from dgemma.engine.base import Row
from dgemma.engine.batch import Arrays, PassShape, allocate, fill_contents, fill_index
from dgemma.engine.contexts import Contexts
from dgemma.engine.graph import (
    NUMBER,
    TOKENS,
    arrival_name,
    arrived_name,
    lines_names,
    written_names,
)
from dgemma.engine.kv_pool import FloatArray
from dgemma.engine.shares import Meeting
from dgemma.geometry import Geometry
from dgemma.ort import ort

Where = Sequence[tuple[int, ...]]  # whatever decides where each row stands


@dataclass(frozen=True)
class Core:
    """What computes one share; two that had a session in common would wait for its memory."""

    tokens: range  # of every row
    index: ort.InferenceSession
    network: ort.InferenceSession


@dataclass(frozen=True)
class Cores:
    """What computes shares side by side."""

    each: Sequence[Core]
    meeting: Meeting
    crew: Crew


class BoundPass:
    """One shape's inputs and outputs; what `run` computes is valid until it is called again."""

    def __init__(
        self, cores: Cores, contexts: Contexts, shape: PassShape, geometry: Geometry
    ) -> None:
        self._cores, self._contexts = cores, contexts
        self._arrays, self._attended = allocate(shape, geometry), contexts.arrays(shape)
        size = (shape.rows, geometry.canvas_length, geometry.hidden_size)
        self.hidden: FloatArray = np.zeros(size, np.float32)
        arrived = cores.meeting.arrived
        lines = [array.reshape(-1, array.shape[-1]) for array in self._attended]
        taken: Arrays = {**self._arrays, NUMBER: cores.meeting.number}
        taken |= {arrived_name(layer): numbers for layer, numbers in enumerate(arrived)}
        taken |= zip(lines_names(geometry), lines, strict=True)
        self._shares: list[_Share] = []
        for at, core in enumerate(cores.each):
            given: Arrays = dict(zip(written_names(geometry), lines, strict=True))
            given |= {arrival_name(layer): n[at, ...] for layer, n in enumerate(arrived)}
            self._shares.append(_Share(core, taken, given, self.hidden))
        self._where: Where = []

    def run(self, rows: Sequence[Row], where: Where, room: int) -> int:
        """Compute `hidden` and the rows' K/V; the largest expert load of a share, in tokens.

        Raises what a share raises; the pass is void then, and the next may be any.
        """
        fill_contents(self._arrays, rows)
        moved = where != self._where
        if moved:
            fill_index(self._arrays, rows)
            self._where = where
        self._contexts.place(rows, self._attended)
        self._cores.meeting.begin()
        self._cores.crew.run([partial(self._compute, each, room, moved) for each in self._shares])
        return max(share.load for share in self._shares)

    def _compute(self, share: _Share, room: int, moved: bool) -> None:
        with self._cores.meeting.attended():
            share.run(room, moved)

    @property
    def placed_bytes(self) -> int:
        """Of what the rows' places have decided, which grows with rows times keys."""
        return sum(array.nbytes for share in self._shares for array in share.decided)

    def forget(self) -> None:
        """Give that back."""
        for share in self._shares:
            share.forget()


class _Share:
    """The same tokens of every row, computed by one core."""

    def __init__(self, core: Core, taken: Arrays, given: Arrays, hidden: FloatArray) -> None:
        """Bind what the graphs take and give besides their own; `hidden [R, L, D]` is for all."""
        rows, _, width = hidden.shape
        self._core, self._room = core, np.arange(0)
        self._all = hidden[:, core.tokens.start : core.tokens.stop]
        self._hidden: FloatArray = np.empty((rows, len(core.tokens), width), np.float32)
        self._load: NDArray[np.int64] = np.zeros((), np.int64)
        self._io, self._index_io = core.network.io_binding(), core.index.io_binding()
        self._is_placed = False
        self.decided: list[NDArray[np.generic]] = []  # by the index, once it was run
        # Values that share memory with arrays; a binding alone keeps neither alive.
        self._bound: list[tuple[ort.OrtValue, NDArray[np.generic]]] = []
        inputs = {**taken, TOKENS: np.arange(core.tokens.start, core.tokens.stop)}
        for session, io in ((core.network, self._io), (core.index, self._index_io)):
            for value in session.get_inputs():
                if value.name in inputs:
                    io.bind_ortvalue_input(value.name, self._value(inputs[value.name]))
        # Dense experts have no capacity.
        self._has_room = any(value.name == "room" for value in core.network.get_inputs())
        for name, array in (given | {"hidden": self._hidden, "load": self._load}).items():
            self._io.bind_ortvalue_output(name, self._value(array))

    @property
    def load(self) -> int:
        """The largest of an expert."""
        return int(self._load)

    def run(self, room: int, moved: bool) -> None:
        """Compute the share's tokens. `moved`: rows stand elsewhere."""
        if moved or not self._is_placed:
            self._is_placed = False
            self._place()
            self._is_placed = True
        if self._has_room and room != len(self._room):
            self._room = np.arange(room)
            self._io.bind_cpu_input("room", self._room)
        self._core.network.run_with_iobinding(self._io)
        self._all[:] = self._hidden

    def _place(self) -> None:
        """Work out what the rows' places decide; a canvas stands where it stood a step before."""
        if self.decided:
            self._core.index.run_with_iobinding(self._index_io)
            return
        # Only a run tells the sizes of what it gives; later ones give it where this one did.
        names = [value.name for value in self._core.index.get_outputs()]
        for name in names:
            self._index_io.bind_output(name)
        self._core.index.run_with_iobinding(self._index_io)
        self.decided = self._index_io.copy_outputs_to_cpu()
        self._index_io.clear_binding_outputs()
        for name, array in zip(names, self.decided, strict=True):
            value = ort.OrtValue.ortvalue_from_numpy(array)
            self._index_io.bind_ortvalue_output(name, value)
            self._io.bind_ortvalue_input(name, value)

    def forget(self) -> None:
        self._index_io.clear_binding_outputs()
        self._is_placed, self.decided = False, []

    def _value(self, array: NDArray[np.generic]) -> ort.OrtValue:
        value = ort.OrtValue.ortvalue_from_numpy(array)
        self._bound.append((value, array))
        return value
