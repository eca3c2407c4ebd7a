"""The tail of the `simulated` engine: words out of a hat, after a drawn number of steps.

Knows how a canvas would look that nobody computes; all of it is a function of the request's seed
and the block, as a real canvas's noise is, never of neighbours. Its time is the engine's.
Shapes: L canvas length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from hashlib import shake_128

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

    seed: int
    block: int
    words: Tensor  # int64 [L]
    ending: Tensor  # int64 [L], the same with the stop id where the answer ends, if it does here
    steps: int | None  # None: it never converges

    @cached_property
    def order(self) -> Tensor:
        """In which positions are accepted, int64 `[L]`; only drafts show it."""
        keys = np.frombuffer(_drawn(self.seed, self.block, "order", 4 * len(self.words)), "<u4")
        return torch.from_numpy(keys.argsort(kind="stable"))


@dataclass
class DrawnCanvas(Canvas):
    """A canvas that holds from the start what it will say."""

    plan: Plan = field(kw_only=True)
    steps: int | None = field(kw_only=True)
    most: int = field(kw_only=True)  # steps, the last of them included

    @property
    def states(self) -> Tensor:
        """As many positions are accepted as steps were run of those that it takes."""
        order = self.plan.order
        accepted = order * self.most < len(order) * self.step
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
            plan=plan,
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
        drawn = _drawn(seed, block, "canvas", 16 + 2 * self._length)
        chosen = np.frombuffer(drawn, "<u2", offset=16)
        ids = self._words[chosen % len(self._words)]
        steps = steps_wanted(_uniform(drawn[:8]))
        end = int(-MEAN_ANSWER * math.log1p(-_uniform(drawn[8:16])))
        words = ending = torch.from_numpy(ids)
        if end < self._length:
            ended = ids.copy()
            ended[end] = self._stop
            ending = torch.from_numpy(ended)
        return Plan(seed, block, words, ending, steps)


def _drawn(seed: int, block: int, what: str, size: int) -> bytes:
    """Random bytes that depend on nothing else, from one call of a hash."""
    return shake_128(f"{what} {seed} {block}".encode()).digest(size)


def _uniform(drawn: bytes) -> float:
    """In [0, 1), of eight bytes, with as many bits as a float has."""
    return (int.from_bytes(drawn) >> 11) * 2.0**-53
