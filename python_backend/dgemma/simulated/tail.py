"""The tail of the `simulated` engine: words out of a hat, after a drawn number of steps.

Knows how a canvas would look that nobody computes; all of it is a function of the request's seed
and the block, as a real canvas's noise is, never of neighbours. Its time is the engine's.
Shapes: L canvas length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from dgemma.sampling import Sampling
from dgemma.simulated.convergence import steps_wanted
from dgemma.tail.tail import Canvas, hold

MEAN_ANSWER = 512  # tokens up to the stop id, where nothing else ends an answer; not published
MOST_PLANS = 2048  # kept, of a few kilobytes each


@dataclass(frozen=True)
class Plan:
    """What becomes of one canvas."""

    words: Tensor  # int64 [L]
    ending: Tensor  # int64 [L], the same with the stop id where the answer ends, if it does here
    order: Tensor  # int64 [L], in which positions are accepted
    steps: int | None  # None: it never converges


class SimulatedTail:
    """Denoise steps without hidden states."""

    def __init__(self, words: Sequence[int], stop: int, length: int) -> None:
        """Answers consist of `words`, ids of tokens that read as text, and end with `stop`."""
        self._words, self._stop, self._length = np.array(words, np.int64), stop, length
        self._plan = lru_cache(MOST_PLANS)(self._planned)

    def begin(self, block: int, sampling: Sampling, pinned: Tensor | None) -> Canvas:
        """A canvas that holds from the start what it will say."""
        return Canvas(block, self._ids(block, sampling, pinned), pinned)

    def step(self, hidden: Tensor, rows: Sequence[tuple[Canvas, Sampling]]) -> None:
        """One denoise step of every row; the canvases are updated."""
        for canvas, sampling in rows:
            plan, most = self._plan(sampling.seed, canvas.block), sampling.max_denoising_steps
            # No mean entropy lies below a threshold of 0, so no canvas stops early.
            steps = plan.steps if sampling.confidence_threshold else None
            canvas.step += 1
            canvas.argmax = canvas.ids
            canvas.converged = steps is not None and canvas.step >= steps
            until = most if steps is None else min(most, steps)
            canvas.accepted = plan.order * until < self._length * canvas.step
            canvas.mean_entropy = 0.0  # nothing is known of it

    def _ids(self, block: int, sampling: Sampling, pinned: Tensor | None) -> Tensor:
        plan = self._plan(sampling.seed, block)
        # A template says itself where the answer ends.
        ends = pinned is None and not sampling.ignore_eos
        return hold(plan.ending if ends else plan.words, pinned)

    def _planned(self, seed: int, block: int) -> Plan:
        dice = np.random.Generator(np.random.Philox(key=[seed, block]))
        steps = steps_wanted(dice.random())
        end = int(dice.exponential(MEAN_ANSWER))
        words = torch.from_numpy(dice.choice(self._words, self._length))
        ending = words.clone()
        if end < self._length:
            ending[end] = self._stop
        return Plan(words, ending, torch.from_numpy(dice.permutation(self._length)), steps)
