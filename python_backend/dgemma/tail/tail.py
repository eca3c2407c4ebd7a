"""The tail: last hidden states in, the next canvas of every row out.

Knows each slot's canvas, belief and history, and the order of one denoise step; knows neither the
network nor which request a slot serves.
Shapes: R rows, L canvas length, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from dgemma.sampling import Sampling
from dgemma.tail.acceptance import accept, converged, mean_entropy, temperature
from dgemma.tail.draws import Draws, Moment, together
from dgemma.tail.noise import Race
from dgemma.tail.statistics import Head, Statistics, statistics
from dgemma.tail.sweep import Sweep
from dgemma.template import FREE

PROVISIONAL, ACCEPTED, PINNED = range(3)
SCHEDULES = 256  # kept, of requests with different settings; a few kilobytes each at most


@dataclass
class Canvas:
    """The state of one canvas between its steps. Only the tail writes it."""

    block: int
    ids: Tensor  # int64 [L], what the next step denoises
    pinned: Tensor | None  # int64 [L], token or FREE; None where all are free
    soft: Tensor | None = None  # [L, D], None before the first step
    argmax: Tensor | None = None  # int64 [L], the answer so far
    accepted: Tensor | None = None  # bool [L]
    entropy: Tensor | None = None  # fp32 [L]
    step: int = 0  # steps run
    repeats: int = 0  # steps in a row whose argmax equalled that of the step before
    mean_entropy: float = float("nan")
    converged: bool = False

    @property
    def states(self) -> Tensor:
        """PROVISIONAL, ACCEPTED or PINNED per position, int64 `[L]`."""
        assert self.accepted is not None, "states exist after the first step"
        states = self.accepted.long()
        return states if self.pinned is None else states.masked_fill(self.pinned != FREE, PINNED)

    def settle(self, sampling: Sampling, mean: float, same: bool) -> None:
        """Count a step whose free positions have this mean entropy, and the `same` argmax again."""
        self.step += 1
        self.mean_entropy = mean
        self.repeats = self.repeats + 1 if same else 0
        self.converged = converged(
            self.repeats, sampling.stability_threshold, mean, sampling.confidence_threshold
        )

    def is_done(self, sampling: Sampling) -> bool:
        """Whether it takes no further step."""
        return self.converged or self.step >= sampling.max_denoising_steps


class Denoiser(Protocol):
    """What a scheduler needs of a tail."""

    def begin(self, block: int, sampling: Sampling, pinned: Tensor | None) -> Canvas: ...
    def step(self, hidden: Tensor, rows: Sequence[tuple[Canvas, Sampling]]) -> None: ...


@dataclass(frozen=True)
class Tail:
    """Denoise steps for the rows of a pass, each under its own request's settings."""

    head: Head
    draws: Draws
    sweep: Sweep = statistics

    def begin(self, block: int, sampling: Sampling, pinned: Tensor | None) -> Canvas:
        """A fresh canvas of uniform tokens, with the pinned ones in place."""
        ids = self.draws.initial(sampling.seed, block)
        pinned = None if pinned is None else pinned.to(ids.device)
        return Canvas(block, hold(ids, pinned), pinned)

    @torch.inference_mode()
    def step(self, hidden: Tensor, rows: Sequence[tuple[Canvas, Sampling]]) -> None:
        """One denoise step of every row from `hidden [R, L, D]`; the canvases are updated."""
        moments = [Moment(s.seed, canvas.block, canvas.step) for canvas, s in rows]
        warmth, bound = _settings(rows, hidden.device)
        renoise, race = self.draws.step(moments)
        view = self._statistics(hidden, warmth[..., None], moments, race)
        pinned = _stack_pinned([canvas for canvas, _ in rows])
        free = None if pinned is None else pinned == FREE
        accepted = accept(view.entropy, bound, free)
        ids = torch.where(accepted, view.sampled, renoise)
        argmax, soft = view.argmax, view.soft
        if pinned is not None:
            ids, argmax = hold(ids, pinned), hold(argmax, pinned)
            soft = self.head.hold(soft, pinned)
        mean = mean_entropy(view.entropy, free)
        same = (argmax == _last_argmax(rows, argmax)).all(-1)
        # The one read of device memory by the host between two passes.
        means, repeated = torch.stack([mean, same.to(mean.dtype)]).tolist()
        for i, (canvas, sampling) in enumerate(rows):
            canvas.ids, canvas.soft, canvas.argmax = ids[i], soft[i], argmax[i]
            canvas.accepted, canvas.entropy = accepted[i], view.entropy[i]
            canvas.settle(sampling, means[i], bool(repeated[i]))

    def _statistics(
        self, hidden: Tensor, warmth: Tensor, moments: Sequence[Moment], race: Race | None
    ) -> Statistics:
        if race is not None:
            return self.sweep(self.head, hidden, warmth, race)
        view = statistics(self.head, hidden, warmth, None)
        sampled = self.draws.invert(moments, self.head.probabilities(hidden, warmth))
        return replace(view, sampled=sampled)


def _settings(
    rows: Sequence[tuple[Canvas, Sampling]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Temperature and entropy bound of each row, fp32 `[R, 1]`."""
    tables = [
        _schedule(s.max_denoising_steps, s.t_min, s.t_max, s.entropy_bound, device) for _, s in rows
    ]
    steps = [canvas.step for canvas, _ in rows]
    return (
        together([table[step : step + 1] for (table, _), step in zip(tables, steps, strict=True)]),
        together([bound for _, bound in tables]),
    )


@lru_cache(SCHEDULES)
def _schedule(
    steps: int, t_min: float, t_max: float, entropy_bound: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The temperatures of all steps `[N, 1]` and the bound `[1, 1]`, on the device, fp32."""
    warmth = [[temperature(step, steps, t_min, t_max)] for step in range(steps)]
    return torch.tensor(warmth, device=device), torch.tensor([[entropy_bound]], device=device)


def _last_argmax(rows: Sequence[tuple[Canvas, Sampling]], like: Tensor) -> Tensor:
    """Each canvas's argmax of the step before, int64 `[R, L]`; -1 where there was none."""
    none = torch.full_like(like[:1], -1) if any(c.argmax is None for c, _ in rows) else like
    return together([none if c.argmax is None else c.argmax[None] for c, _ in rows])


def hold(ids: Tensor, pinned: Tensor | None) -> Tensor:
    """Token ids `[.., L]` with the pinned ones in their places."""
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
