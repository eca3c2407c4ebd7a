"""Arrays that onnxruntime reads and writes in place, for all passes of one shape.

Knows how buffers are bound to sessions, which of them the shares of a pass have in common, and what
needs no computing again where rows stand as they did; knows neither what a pass computes nor when
it is run. Binding costs more than a small pass's share of the host's time, so it is done once a
shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dgemma.engine.base import Row
from dgemma.engine.batch import Arrays, PassShape, allocate, fill_contents, fill_index
from dgemma.engine.graph import NUMBER, arrival_name, arrived_name, fresh_names, lines_names
from dgemma.engine.kv_pool import FloatArray, KVPool
from dgemma.engine.shares import Meeting
from dgemma.geometry import Geometry
from dgemma.ort import ort


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
    others: ThreadPoolExecutor  # a thread for each share but the last, which is the caller's


class BoundPass:
    """One shape's inputs and outputs; what `run` computes is valid until it is called again."""

    def __init__(
        self,
        cores: Cores,
        pools: Mapping[str, ort.OrtValue],
        shape: PassShape,
        geometry: Geometry,
    ) -> None:
        self._cores = cores
        size = (shape.rows, geometry.canvas_length, geometry.hidden_size)
        self.hidden: FloatArray = np.zeros(size, np.float32)
        fresh = cores.meeting.fresh(shape.rows)
        common: Arrays = {NUMBER: cores.meeting.number}
        common |= {arrived_name(i): numbers for i, numbers in enumerate(cores.meeting.arrived)}
        for name, array in zip(lines_names(geometry), fresh, strict=True):
            common[name] = array.reshape(-1, array.shape[-1])
        self._shares: list[_Share] = []
        for at, core in enumerate(cores.each):
            own = [array[at] for array in fresh]
            outputs: Arrays = dict(zip(fresh_names(geometry), own, strict=True))
            for layer, numbers in enumerate(cores.meeting.arrived):
                outputs[arrival_name(layer)] = numbers[at, ...]
            share = _Share(core, allocate(shape, geometry, core.tokens), own)
            share.bind(common, pools, outputs)
            self._shares.append(share)
        self._where: Sequence[tuple[int, ...]] = ()

    def run(self, rows: Sequence[Row], room: int) -> int:
        """Compute `hidden` and what `keep` keeps; the largest expert load."""
        where = [(row.denoise, row.start, row.valid, row.slot, row.partner) for row in rows]
        moved, self._where = where != self._where, where
        meeting = self._cores.meeting
        meeting.begin()

        def run(share: _Share) -> int:
            with meeting.attended():
                return share.run(rows, room, moved)

        *others, last = self._shares
        running: list[Future[int]] = []
        try:
            with meeting.attended():
                running += (self._cores.others.submit(run, share) for share in others)
                load = run(last)
        finally:  # nobody may write to the pools meanwhile
            wait(running)
        loads = [load, *(share.result() for share in running)]
        for share in self._shares:
            self.hidden[:, share.own] = share.hidden
        return max(loads)

    def forget(self) -> None:
        """Give back what the rows' places have decided, which grows with rows times keys."""
        for share in self._shares:
            share.forget()

    def keep(self, pool: KVPool, rows: Sequence[Row]) -> None:
        """Write the K/V of the encode rows to their slots."""
        for share in self._shares:
            pool.write(rows, share.fresh, share.own.start)


class _Share:
    """The same tokens of every row, computed by one core."""

    def __init__(self, core: Core, arrays: Arrays, fresh: list[FloatArray]) -> None:
        self.own, self.fresh = slice(core.tokens.start, core.tokens.stop), fresh
        self.hidden: FloatArray = np.empty_like(arrays["soft"], np.float32)
        self._load: NDArray[np.int64] = np.zeros((), np.int64)
        self._core, self._arrays, self._room = core, arrays, np.arange(0)
        self._io, self._index_io = core.network.io_binding(), core.index.io_binding()
        self._is_placed = False
        self._decided: list[NDArray[np.generic]] = []  # by the index, once it was run
        # Values that share memory with arrays; a binding alone keeps neither alive.
        self._bound: list[tuple[ort.OrtValue, NDArray[np.generic]]] = []

    def bind(self, common: Arrays, pools: Mapping[str, ort.OrtValue], outputs: Arrays) -> None:
        """Bind what the graphs take of the own arrays, `common` and `pools`, and all outputs."""
        inputs = self._arrays | common
        given = {name: self._value(array) for name, array in inputs.items()} | {**pools}
        wanted = {value.name for value in self._core.network.get_inputs()}
        self._has_room = "room" in wanted  # dense experts have no capacity
        for name in wanted & given.keys():
            self._io.bind_ortvalue_input(name, given[name])
        for value in self._core.index.get_inputs():
            self._index_io.bind_ortvalue_input(value.name, given[value.name])
        for name, array in (outputs | {"hidden": self.hidden, "load": self._load}).items():
            self._io.bind_ortvalue_output(name, self._value(array))

    def run(self, rows: Sequence[Row], room: int, moved: bool) -> int:
        """Compute `hidden` and `fresh`; the largest expert load. `moved`: rows stand elsewhere."""
        fill_contents(self._arrays, rows, self.own)
        if moved or not self._is_placed:
            self._is_placed = False
            self._place(rows)
            self._is_placed = True
        if self._has_room and room != len(self._room):
            self._room = np.arange(room)
            self._io.bind_cpu_input("room", self._room)
        self._core.network.run_with_iobinding(self._io)
        return int(self._load)

    def _place(self, rows: Sequence[Row]) -> None:
        """Work out what the rows' places decide; a canvas stands where it stood a step before."""
        fill_index(self._arrays, rows)
        if self._decided:
            self._core.index.run_with_iobinding(self._index_io)
            return
        # Only a run tells the sizes of what it gives; later ones give it where this one did.
        names = [value.name for value in self._core.index.get_outputs()]
        for name in names:
            self._index_io.bind_output(name)
        self._core.index.run_with_iobinding(self._index_io)
        self._decided = self._index_io.copy_outputs_to_cpu()
        self._index_io.clear_binding_outputs()
        for name, array in zip(names, self._decided, strict=True):
            value = ort.OrtValue.ortvalue_from_numpy(array)
            self._index_io.bind_ortvalue_output(name, value)
            self._io.bind_ortvalue_input(name, value)

    def forget(self) -> None:
        self._index_io.clear_binding_outputs()
        self._is_placed, self._decided = False, []

    def _value(self, array: NDArray[np.generic]) -> ort.OrtValue:
        value = ort.OrtValue.ortvalue_from_numpy(array)
        self._bound.append((value, array))
        return value
