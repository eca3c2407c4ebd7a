"""The tail of small vocabularies through onnxruntime, canvases shared out over cores.

Knows how steps are fed from canvases, and how far one canvas's step goes; knows neither what the
graphs compute nor how they are bound. Right after a pass an operator of eager torch costs ten times
what one of a compiled graph does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from dgemma.sampling import Sampling
from dgemma.tail.acceptance import temperature
from dgemma.tail.bound_step import Arrays, BoundStep, Graphs
from dgemma.tail.draws import Moment, SeededDraws
from dgemma.tail.tail import Canvas, Tail, hold
from dgemma.template import FREE


@dataclass(frozen=True)
class CompiledTail(Tail):
    """Gives what `Tail` gives, to fp32 rounding; of a canvas that is done, no next one."""

    draws: SeededDraws
    graphs: Graphs = field(kw_only=True)
    _bound: dict[int, BoundStep] = field(default_factory=dict, init=False)

    def step(self, hidden: Tensor, rows: Sequence[tuple[Canvas, Sampling]]) -> None:
        """One denoise step of every row from `hidden [R, L, D]`; the canvases are updated."""
        if len(rows) not in self._bound:
            self._bound[len(rows)] = BoundStep(self.graphs, len(rows))
        bound = self._bound[len(rows)]
        bound.arrays["hidden"][:] = hidden.numpy()
        self._fill(bound.arrays, rows)
        if len(rows) == 1:
            bound.look()
        else:  # to call the crew once more takes longer than to draw for those that are done
            bound.look_and_draw()
        bound.move()
        for (canvas, sampling), accepted, argmax, entropy, mean, same in zip(
            rows,
            *map(bound.rows, ("accepted", "argmax", "entropy")),
            *(bound.arrays[name].tolist() for name in ("mean", "same")),
            strict=True,
        ):
            canvas.argmax = hold(argmax, canvas.pinned)
            canvas.accepted, canvas.entropy = accepted, entropy
            canvas.settle(sampling, mean, same)
        if all(canvas.is_done(sampling) for canvas, sampling in rows):
            return
        if len(rows) == 1:
            bound.draw()
        for (canvas, sampling), ids, soft in zip(
            rows, bound.next_ids(), bound.rows("soft"), strict=True
        ):
            if canvas.is_done(sampling):
                continue
            canvas.ids, canvas.soft = hold(ids, canvas.pinned), soft
            if canvas.pinned is not None:
                canvas.soft = self.head.hold(soft, canvas.pinned)

    def _fill(self, given: Arrays, rows: Sequence[tuple[Canvas, Sampling]]) -> None:
        for index, (canvas, sampling) in enumerate(rows):
            plan, at = self.draws.plan(Moment(sampling.seed, canvas.block, canvas.step))
            assert plan.sample.tokens is not None, "a vocabulary with graphs has few tokens"
            given["temperature"][index] = temperature(
                canvas.step, sampling.max_denoising_steps, sampling.t_min, sampling.t_max
            )
            given["bound"][index] = sampling.entropy_bound
            given["last"][index] = FREE if canvas.argmax is None else canvas.argmax.numpy()
            pinned = canvas.pinned
            given["free"][index] = True if pinned is None else (pinned == FREE).numpy()
            given["renoise"][index] = plan.renoise.numpy()[at]
            given["positions"][index, :, 0] = plan.sample.positions.numpy()[at]
            given["tokens"][index, 0] = plan.sample.tokens.numpy()[at]
