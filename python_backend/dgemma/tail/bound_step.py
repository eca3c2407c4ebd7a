"""Arrays that onnxruntime reads and writes in place, for all tail steps of so many rows.

Knows how the emitted graphs are loaded and bound to arrays, and which core computes which rows;
knows neither canvases nor what the graphs compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgemma.crew import Crew
from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.manifest import REBUILD
from dgemma.ort import ort
from dgemma.tail.graph import DRAW, LOOK, MOVE, RENOISE, Ends, Value

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Core:
    """Sessions of one thread; two that had one in common would wait for its memory."""

    look: ort.InferenceSession
    draw: ort.InferenceSession


@dataclass(frozen=True)
class Graphs:
    """The tail's graphs and who runs them."""

    cores: Sequence[Core]  # one for each thread of …
    crew: Crew
    move: ort.InferenceSession
    sizes: Mapping[str, int]

    @classmethod
    def load(cls, engine: Path, geometry: Geometry, crew: Crew) -> Graphs:
        """Those in an engine's directory; ConfigurationError names one that fails."""
        cores = [Core(_open(engine, LOOK), _open(engine, DRAW)) for _ in range(crew.size)]
        sizes = {"L": geometry.canvas_length, "D": geometry.hidden_size, "V": geometry.vocab_size}
        return cls(cores, crew, _open(engine, MOVE), sizes)


def _open(engine: Path, ends: Ends) -> ort.InferenceSession:
    path = engine / ends.file
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ConfigurationError(
            f"{path}: onnxruntime cannot load it: {error}; {REBUILD}"
        ) from None
    if {value.name for value in session.get_inputs()} != {value.name for value in ends.inputs}:
        raise ConfigurationError(f"{path}: of another version; {REBUILD}")
    return session


class BoundStep:
    """Steps of `count` rows; what they compute is valid until the next one."""

    def __init__(self, graphs: Graphs, count: int) -> None:
        self._graphs = graphs
        self._bound: list[tuple[ort.OrtValue, NDArray[Any]]] = []
        values = {v.name: v for ends in (LOOK, DRAW, MOVE) for v in (*ends.inputs, *ends.outputs)}
        passed_on = [value for value in LOOK.outputs if value in DRAW.inputs]
        kept = [RENOISE, *(value for value in values.values() if value not in passed_on)]
        self.arrays: Arrays = _allocate(kept, {**graphs.sizes, "R": count})
        self._move = self._bind(graphs.move, MOVE, self.arrays)
        used = graphs.cores[:count]
        # One row after another passes on what only `draw` reads.
        between = [_allocate(passed_on, graphs.sizes) for _ in used]
        self._rows: list[tuple[Core, ort.IOBinding, ort.IOBinding]] = []
        for row in range(count):
            core = used[row % len(used)]
            own = {name: array[row : row + 1] for name, array in self.arrays.items()}
            own |= between[row % len(used)]
            look, draw = self._bind(core.look, LOOK, own), self._bind(core.draw, DRAW, own)
            self._rows.append((core, look, draw))
        # The caller has the first row and those that are one too many.
        self._parts = [range(first, count, len(used)) for first in reversed(range(len(used)))]

    def look(self) -> None:
        """At the only row."""
        (core, look, _), *_ = self._rows
        core.look.run_with_iobinding(look)

    def draw(self) -> None:
        """The only row's tokens, which `look` has looked at."""
        (core, _, draw), *_ = self._rows
        core.draw.run_with_iobinding(draw)

    def look_and_draw(self) -> None:
        """All rows, some of them on each core."""
        self._graphs.crew.run([partial(self._look_and_draw, part) for part in self._parts])

    def _look_and_draw(self, part: range) -> None:
        for row in part:
            core, look, draw = self._rows[row]
            core.look.run_with_iobinding(look)
            core.draw.run_with_iobinding(draw)

    def move(self) -> None:
        """All rows, which were looked at."""
        self._graphs.move.run_with_iobinding(self._move)

    def next_ids(self) -> tuple[Tensor, ...]:
        """What was drawn where it was accepted, noise elsewhere, row by row."""
        accepted, sampled, renoise = (self.arrays[n] for n in ("accepted", "sampled", "renoise"))
        return torch.from_numpy(np.where(accepted, sampled, renoise)).unbind(0)

    def rows(self, name: str) -> tuple[Tensor, ...]:
        """Copies of an array, row by row."""
        return torch.from_numpy(self.arrays[name].copy()).unbind(0)

    def _bind(self, session: ort.InferenceSession, ends: Ends, arrays: Arrays) -> ort.IOBinding:
        io = session.io_binding()
        for value in ends.inputs:
            io.bind_ortvalue_input(value.name, self._value(arrays[value.name]))
        for value in ends.outputs:
            io.bind_ortvalue_output(f"out.{value.name}", self._value(arrays[value.name]))
        return io

    def _value(self, array: NDArray[Any]) -> ort.OrtValue:
        value = ort.OrtValue.ortvalue_from_numpy(array)
        self._bound.append((value, array))  # a binding keeps neither alive
        return value


def _allocate(values: Sequence[Value], sizes: Mapping[str, int]) -> Arrays:
    return {v.name: torch.zeros(v.shape(sizes), dtype=v.dtype).numpy() for v in values}
