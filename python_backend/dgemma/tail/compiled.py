"""The tail of small vocabularies through onnxruntime, one row at a time.

Knows how the emitted graphs are fed from canvases; knows nothing of what they compute. Right after
a pass an operator of eager torch costs ten times what one of a compiled graph does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.manifest import REBUILD
from dgemma.ort import ort
from dgemma.sampling import Sampling
from dgemma.tail.acceptance import temperature
from dgemma.tail.draws import Moment, SeededDraws
from dgemma.tail.graph import LOOK, MOVE, Ends, Value
from dgemma.tail.statistics import Head
from dgemma.tail.tail import Canvas, Tail, hold
from dgemma.template import FREE

Arrays = dict[str, NDArray[Any]]


class BoundGraph:
    """A session whose inputs and outputs stand in arrays that never move."""

    def __init__(
        self, path: Path, ends: Ends, sizes: Mapping[str, int], shared: Mapping[str, ort.OrtValue]
    ) -> None:
        """`shared` are inputs that another graph writes; ConfigurationError names the file."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # to wake another costs more than it saves
        options.log_severity_level = 3
        self.inputs: Arrays = {}
        self.outputs: Arrays = {}
        self.values: dict[str, ort.OrtValue] = {}
        try:
            self._session = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            self._io = self._session.io_binding()
            for value in ends.inputs:
                if value.name in shared:
                    self._io.bind_ortvalue_input(value.name, shared[value.name])
                else:
                    bound = self._allocate(value, sizes, self.inputs)
                    self._io.bind_ortvalue_input(value.name, bound)
            for value in ends.outputs:
                bound = self._allocate(value, sizes, self.outputs)
                self._io.bind_ortvalue_output(value.name, bound)
        except Exception as error:
            raise ConfigurationError(
                f"{path}: onnxruntime cannot load it: {error}; {REBUILD}"
            ) from None

    def run(self) -> None:
        self._session.run_with_iobinding(self._io)

    def result(self, name: str) -> Tensor:
        """A copy of one output, without its row."""
        return torch.from_numpy(self.outputs[name][0].copy())

    def _allocate(self, value: Value, sizes: Mapping[str, int], arrays: Arrays) -> ort.OrtValue:
        array = torch.zeros(value.shape(sizes), dtype=value.dtype).numpy()
        arrays[value.name] = array
        bound = ort.OrtValue.ortvalue_from_numpy(array)
        self.values[value.name] = bound  # a binding does not keep it alive
        return bound


@dataclass(frozen=True)
class CompiledTail(Tail):
    """Gives what `Tail` gives, to fp32 rounding; of a canvas that is done, no next one."""

    draws: SeededDraws
    look: BoundGraph = field(kw_only=True)
    move: BoundGraph = field(kw_only=True)

    @classmethod
    def load(cls, head: Head, draws: SeededDraws, engine: Path, geometry: Geometry) -> CompiledTail:
        """With the graphs in an engine's directory; ConfigurationError names one that fails."""
        sizes = {"L": geometry.canvas_length, "D": geometry.hidden_size, "V": geometry.vocab_size}
        look = BoundGraph(engine / LOOK.file, LOOK, sizes, {})
        seen = {name.removeprefix("out."): value for name, value in look.values.items()}
        passed_on = {name: seen[name] for name in ("weight", "mass", "accepted")}
        return cls(
            head, draws, look=look, move=BoundGraph(engine / MOVE.file, MOVE, sizes, passed_on)
        )

    def step(self, hidden: Tensor, rows: Sequence[tuple[Canvas, Sampling]]) -> None:
        """One denoise step of every row from `hidden [R, L, D]`; the canvases are updated."""
        for row, (canvas, sampling) in zip(hidden.numpy(), rows, strict=True):
            self._look(row, canvas, sampling)
            if not canvas.is_done(sampling):
                self._move(canvas, sampling)

    def _look(self, hidden: NDArray[np.float32], canvas: Canvas, sampling: Sampling) -> None:
        given, seen, pinned = self.look.inputs, self.look.outputs, canvas.pinned
        given["hidden"][0] = hidden
        given["temperature"][0] = temperature(
            canvas.step, sampling.max_denoising_steps, sampling.t_min, sampling.t_max
        )
        given["bound"][0] = sampling.entropy_bound
        given["last"][0] = FREE if canvas.argmax is None else canvas.argmax.numpy()
        given["free"][0] = True if pinned is None else (pinned == FREE).numpy()
        self.look.run()
        canvas.argmax = hold(self.look.result("out.argmax"), pinned)
        canvas.accepted = self.look.result("out.accepted")
        canvas.entropy = self.look.result("out.entropy")
        canvas.settle(sampling, float(seen["out.mean"][0]), bool(seen["out.same"][0]))

    def _move(self, canvas: Canvas, sampling: Sampling) -> None:
        given, pinned = self.move.inputs, canvas.pinned
        plan, at = self.draws.plan(Moment(sampling.seed, canvas.block, canvas.step - 1))
        assert plan.sample.tokens is not None, "a vocabulary with graphs has few tokens"
        given["renoise"][0] = plan.renoise.numpy()[at]
        given["positions"][0, :, 0] = plan.sample.positions.numpy()[at]
        given["tokens"][0, 0] = plan.sample.tokens.numpy()[at]
        self.move.run()
        canvas.ids = hold(self.move.result("out.ids"), pinned)
        if canvas.soft is None:
            canvas.soft = self.move.result("out.soft")
        else:  # the pass that it was for is over, and memory at hand needs no page faults
            canvas.soft.numpy()[...] = self.move.outputs["out.soft"][0]
        if pinned is not None:
            canvas.soft = self.head.hold(canvas.soft, pinned)
