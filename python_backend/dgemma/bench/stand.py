"""An engine of random weights under measurement: which passes are timed, and what that amounts to.

Knows the kinds of pass that serving is made of; knows nothing of files or tables.
Shapes: R canvases, L canvas length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from dgemma.bench.parts import WatchedOperations, parts_of
from dgemma.bench.passes import timed
from dgemma.bench.report import Part, Speed, Throughput
from dgemma.bench.timing import ENDLESS, median_ms
from dgemma.engine.base import Capacity, Row
from dgemma.engine.torch_engine import TorchEngine
from dgemma.roofline.flops import Arithmetic
from dgemma.roofline.sizes import Model, pass_bytes
from dgemma.tail.tail import Tail


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    rows: tuple[int, ...] = (1, 2, 4, 8, 16)
    contexts: tuple[int, ...] = (2048, 32768)
    steps: tuple[int, ...] = (16, 27, 48)
    runs: int = 10


@dataclass(frozen=True)
class Timed:
    """Milliseconds of the passes of R canvases behind one context."""

    rows: int
    context: int
    engine: float  # a denoise pass, the network alone
    denoise: float  # the same with its tail
    commit: float  # an encode pass, which has no tail
    fused: float  # commits and the first denoise of the next canvases in one, with the tail

    def throughput(self, length: int, steps: int) -> Iterator[Throughput]:
        """Of canvases that each take `steps`, without and with the fused pass."""
        apart = steps * self.denoise + self.commit
        fused = (steps - 1) * self.denoise + self.fused
        for is_fused, ms in ((False, apart), (True, fused)):
            yield Throughput(
                rows=self.rows,
                context=self.context,
                steps=steps,
                fused=is_fused,
                tokens_per_s=1e3 * self.rows * length / ms,
            )


@dataclass(frozen=True)
class TorchStand:
    """One engine, its tail, and how often each pass is run."""

    engine: TorchEngine
    tail: Tail
    model: Model
    plan: Plan

    def timed(self) -> Iterator[Timed]:
        """Every number of canvases behind every context that the engine has room for."""
        capacity, length = self.engine.capacity, self.engine.geometry.canvas_length
        for context in self.plan.contexts:
            for rows in self.plan.rows:
                if rows <= capacity.slots and context + 2 * length <= capacity.context:
                    yield self._timed(rows, context)

    def speed(self, found: Timed) -> Speed:
        contexts = [found.context] * found.rows
        return Speed(
            rows=found.rows,
            context=found.context,
            runs=self.plan.runs,
            engine_ms=found.engine,
            pass_ms=found.denoise,
            floor_ms=None,
            read_bytes=pass_bytes(self.model, found.rows, found.context).floor,
            operations=Arithmetic(self.model).of(contexts, found.rows).total,
        )

    def _timed(self, rows: int, context: int) -> Timed:
        denoise = self._here(timed(self.engine.geometry, self.engine.capacity, rows, context))
        commits = [row._replace(denoise=False, soft=None) for row in denoise]
        length = self.engine.geometry.canvas_length
        behind = [
            row._replace(start=row.start + length, soft=None, partner=index)
            for index, row in enumerate(denoise)
        ]
        return Timed(
            rows,
            context,
            engine=self._ms(lambda: self.engine.forward(denoise)),
            denoise=self._ms(self._step(denoise, 0)),
            commit=self._ms(lambda: self.engine.forward(commits)),
            fused=self._ms(self._step([*commits, *behind], rows)),
        )

    def parts(self, context: int, watched: WatchedOperations) -> list[Part]:
        """Of a denoise pass of one canvas, run as it comes: a graph shows no parts of it. The tail
        is one more.
        """
        given, weights = self.engine.capacity, self.engine.weights
        alone = TorchEngine(
            weights,
            Capacity(1, given.context, 2),
            self.engine.device,
            captured=False,
            operations=watched,
        )
        rows = self._here(timed(self.engine.geometry, given, 1, context))
        found = parts_of(lambda: alone.forward(rows), watched, self.plan.runs)
        hidden, canvases = alone.forward(rows), [(self.tail.begin(0, ENDLESS, None), ENDLESS)]
        ms = self._ms(lambda: self.tail.step(hidden, canvases))
        return [*found, Part(name="tail", calls=1, ms=ms)]

    def _step(self, rows: Sequence[Row], first: int) -> Callable[[], None]:
        """A pass, and a tail for its rows from `first` on."""
        canvases = [(self.tail.begin(i, ENDLESS, None), ENDLESS) for i in range(len(rows) - first)]
        return lambda: self.tail.step(self.engine.forward(rows)[first:], canvases)

    def _here(self, rows: Sequence[Row]) -> list[Row]:
        """With what a pass is given on the device, where a tail leaves it."""
        where, dtype = self.engine.embedding().device, self.engine.embedding().dtype
        return [
            row._replace(
                ids=row.ids.to(where), soft=None if row.soft is None else row.soft.to(where, dtype)
            )
            for row in rows
        ]

    def _ms(self, call: Callable[[], object]) -> float:
        return median_ms(call, torch.device(self.engine.embedding().device), self.plan.runs)
