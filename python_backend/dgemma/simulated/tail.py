"""The tail of the `simulated` engine: words out of a hat, after a drawn number of steps.

Knows how a canvas would look that nobody computes; all of it is a function of the request's seed
and the block, as a real canvas's noise is, never of neighbours. Its time is the engine's.
Shapes: L canvas length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from dgemma.sampling import Sampling
from dgemma.simulated.convergence import steps_wanted
from dgemma.tail.tail import ACCEPTED, PINNED, PROVISIONAL, Canvas, hold
from dgemma.template import FREE

Later = Callable[[Callable[[], object]], None]

MEAN_ANSWER = 512  # tokens up to the stop id, where nothing else ends an answer; not published
MOST_PLANS = 2048  # kept, of a few kilobytes each


@dataclass(frozen=True)
class Plan:
    """What becomes of one canvas."""

    words: Tensor  # int64 [L]
    ending: Tensor  # int64 [L], the same with the stop id where the answer ends, if it does here
    order: Tensor  # int64 [L], in which positions are accepted
    steps: int | None  # None: it never converges


@dataclass
class DrawnCanvas(Canvas):
    """A canvas that holds from the start what it will say."""

    order: Tensor = field(kw_only=True)
    steps: int | None = field(kw_only=True)
    most: int = field(kw_only=True)  # steps, the last of them included

    @property
    def states(self) -> Tensor:
        """As many positions are accepted as steps were run of those that it takes."""
        accepted = self.order * self.most < len(self.order) * self.step
        states = torch.where(accepted, ACCEPTED, PROVISIONAL)
        return states if self.pinned is None else states.masked_fill(self.pinned != FREE, PINNED)


class SimulatedTail:
    """Denoise steps without hidden states. They have to be quick: no device would wait for them."""

    def __init__(self, words: Sequence[int], stop: int, length: int, later: Later) -> None:
        """Answers consist of `words`, ids of tokens that read as text, and end with `stop`.

        `later` has calls done while no device waits for it.
        """
        self._words, self._stop, self._length = np.array(words, np.int64), stop, length
        self._plan, self._later = lru_cache(MOST_PLANS)(self._planned), later

    def begin(self, block: int, sampling: Sampling, pinned: Tensor | None) -> Canvas:
        plan, most = self._plan(sampling.seed, block), sampling.max_denoising_steps
        # A template says itself where the answer ends.
        ends = pinned is None and not sampling.ignore_eos
        ids = hold(plan.ending if ends else plan.words, pinned)
        # No mean entropy lies below a threshold of 0, so no canvas stops early.
        steps = plan.steps if sampling.confidence_threshold else None
        if (block + 1) * self._length < sampling.max_new_tokens:
            self._later(partial(self._plan, sampling.seed, block + 1))
        return DrawnCanvas(
            *(block, ids, pinned),
            argmax=ids,
            order=plan.order,
            steps=steps,
            most=most if steps is None else min(most, steps),
        )

    def step(self, hidden: Tensor, rows: Sequence[tuple[Canvas, Sampling]]) -> None:
        """One denoise step of every row; the canvases are updated."""
        for canvas, _ in rows:
            assert isinstance(canvas, DrawnCanvas), "begun here"
            canvas.step += 1
            canvas.converged = canvas.steps is not None and canvas.step >= canvas.steps
            canvas.mean_entropy = 0.0  # nothing is known of it

    def _planned(self, seed: int, block: int) -> Plan:
        dice = np.random.Generator(np.random.Philox(key=[seed, block]))
        steps = steps_wanted(dice.random())
        end = int(dice.exponential(MEAN_ANSWER))
        words = torch.from_numpy(dice.choice(self._words, self._length))
        ending = words
        if end < self._length:
            ending = words.clone()
            ending[end] = self._stop
        return Plan(words, ending, torch.from_numpy(dice.permutation(self._length)), steps)
