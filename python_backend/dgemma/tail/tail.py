"""The tail: last hidden states in, the next canvas of every row out.

Knows each slot's canvas, belief and history, and the order of one denoise step; knows neither the
network nor which request a slot serves.
Shapes: R rows, L canvas length, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dgemma.sampling import Sampling
from dgemma.tail.acceptance import accept, mean_entropy, stable, temperature
from dgemma.tail.draws import Draws, Moment
from dgemma.tail.statistics import TILE, Head, Statistics, statistics
from dgemma.template import FREE

PROVISIONAL, ACCEPTED, PINNED = range(3)


@dataclass
class Canvas:
    """The state of one canvas between its steps. Only the tail writes it."""

    block: int
    ids: Tensor  # int64 [L], what the next step denoises
    pinned: Tensor | None  # int64 [L], token or FREE; None where all are free
    history: Tensor  # int64 [H, L], earlier argmax canvases, the latest first
    soft: Tensor | None = None  # [L, D], None before the first step
    argmax: Tensor | None = None  # int64 [L], the answer so far
    accepted: Tensor | None = None  # bool [L]
    entropy: Tensor | None = None  # fp32 [L]
    step: int = 0  # steps run
    mean_entropy: float = float("nan")
    converged: bool = False

    @property
    def states(self) -> Tensor:
        """PROVISIONAL, ACCEPTED or PINNED per position, int64 `[L]`."""
        assert self.accepted is not None, "states exist after the first step"
        states = self.accepted.long()
        return states if self.pinned is None else states.masked_fill(self.pinned != FREE, PINNED)


@dataclass(frozen=True)
class Tail:
    """Denoise steps for the rows of a pass, each under its own request's settings."""

    head: Head
    draws: Draws
    tile: int = field(default=TILE)

    def begin(self, block: int, sampling: Sampling, pinned: Tensor | None) -> Canvas:
        """A fresh canvas of uniform tokens, with the pinned ones in place."""
        ids = self.draws.initial(sampling.seed, block)
        history = ids.new_full((max(1, sampling.stability_threshold), len(ids)), -1)
        return Canvas(block, _hold(ids, pinned), pinned, history)

    @torch.inference_mode()
    def step(self, hidden: Tensor, rows: Sequence[tuple[Canvas, Sampling]]) -> None:
        """One denoise step of every row from `hidden [R, L, D]`; the canvases are updated."""
        moments = [Moment(s.seed, canvas.block, canvas.step) for canvas, s in rows]
        warmth, bound, confidence = _settings(rows, hidden.device)
        view = self._statistics(hidden, warmth[:, None, None], moments)
        pinned = _stack_pinned([canvas for canvas, _ in rows])
        free = torch.ones_like(view.argmax, dtype=torch.bool) if pinned is None else pinned == FREE
        accepted = accept(view.entropy, bound[:, None], free)
        ids = torch.where(accepted, view.sampled, self.draws.renoise(moments))
        argmax, soft = view.argmax, view.soft
        if pinned is not None:
            ids, argmax = torch.where(free, ids, pinned), torch.where(free, argmax, pinned)
            certain = self.head.embedding[pinned.clamp(min=0)].to(soft.dtype)
            soft = torch.where(free[..., None], soft, certain * hidden.shape[-1] ** 0.5)
        mean = mean_entropy(view.entropy, free)
        done = self._stable(argmax, rows) & (mean < confidence)
        # The one read of device memory by the host between two passes.
        flags = torch.stack([mean, done.to(mean.dtype)]).tolist()
        for i, (canvas, _) in enumerate(rows):
            canvas.ids, canvas.soft, canvas.argmax = ids[i], soft[i], argmax[i]
            canvas.accepted, canvas.entropy = accepted[i], view.entropy[i]
            canvas.history = torch.cat([argmax[i : i + 1], canvas.history[:-1]])
            canvas.step += 1
            canvas.mean_entropy, canvas.converged = flags[0][i], bool(flags[1][i])

    def _statistics(self, hidden: Tensor, warmth: Tensor, moments: Sequence[Moment]) -> Statistics:
        race = self.draws.race(moments)
        view = statistics(self.head, hidden, warmth, race, self.tile)
        if race is not None:
            return view
        sampled = self.draws.invert(moments, self.head.probabilities(hidden, warmth))
        return replace(view, sampled=sampled)

    def _stable(self, argmax: Tensor, rows: Sequence[tuple[Canvas, Sampling]]) -> Tensor:
        deepest = max(len(canvas.history) for canvas, _ in rows)
        history = torch.stack(
            [
                torch.nn.functional.pad(c.history, (0, 0, 0, deepest - len(c.history)), value=-1)
                for c, _ in rows
            ]
        )
        depth = torch.tensor([s.stability_threshold for _, s in rows], device=argmax.device)
        return stable(argmax, history, depth)


def _settings(
    rows: Sequence[tuple[Canvas, Sampling]], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Temperature, entropy bound and confidence threshold of each row, fp32 `[R]`."""
    table = [
        (
            temperature(c.step, s.max_denoising_steps, s.t_min, s.t_max),
            s.entropy_bound,
            s.confidence_threshold,
        )
        for c, s in rows
    ]
    warmth, bound, confidence = torch.tensor(table, dtype=torch.float32).to(device).unbind(1)
    return warmth, bound, confidence


def _hold(ids: Tensor, pinned: Tensor | None) -> Tensor:
    return ids if pinned is None else torch.where(pinned == FREE, ids, pinned)


def _stack_pinned(canvases: list[Canvas]) -> Tensor | None:
    if all(canvas.pinned is None for canvas in canvases):
        return None
    return torch.stack(
        [
            torch.full_like(canvas.ids, FREE) if canvas.pinned is None else canvas.pinned
            for canvas in canvases
        ]
    )
