"""Where the tail's random numbers come from: a seed, or a tape.

Knows the three draws of the sampler (initial canvas, sampled token, renoised token); knows nothing
of logits' origin or of scheduling.
Shapes: R rows, L canvas length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from dgemma.tail.noise import INITIAL, RENOISE, SAMPLE, Key, Noise, Race, Words

PLANNED, MOST_PLANS = 8, 512  # steps of a plan; plans kept, some kilobytes each


@dataclass(frozen=True)
class Moment:
    """A denoise step of one canvas: what its noise is a function of."""

    seed: int
    block: int
    step: int  # counted from 0, the first step run


class Draws(Protocol):
    """Random numbers for the rows of a tail step, each a function of its row's moment."""

    def initial(self, seed: int, block: int) -> Tensor:
        """The canvas before its first step, int64 `[L]`."""
        ...

    def step(self, moments: Sequence[Moment]) -> tuple[Tensor, Race | None]:
        """Tokens that replace what is not accepted, int64 `[R, L]`, and what samples the others:
        exponential noise of vocabulary tiles, or None for `invert`.
        """
        ...

    def invert(self, moments: Sequence[Moment], probabilities: Tensor) -> Tensor:
        """Sampled tokens `[R, L]` from fp32 probabilities `[R, L, V]`."""
        ...


@dataclass(frozen=True)
class Plan:
    """The hashes of `PLANNED` steps of one canvas, made at once because each is tiny."""

    initial: Tensor  # int64 [L]
    renoise: Tensor  # int64 [PLANNED, L]
    sample: Words  # of PLANNED keys


class SeededDraws:
    """What the service uses: counter-based noise and an exponential race over the vocabulary."""

    def __init__(
        self, canvas_length: int, vocab_size: int, device: torch.device | None = None
    ) -> None:
        self.noise = Noise(canvas_length, vocab_size, device or torch.device("cpu"))
        self._plan = lru_cache(MOST_PLANS)(self._planned)

    def initial(self, seed: int, block: int) -> Tensor:
        return self._plan(seed, block, 0).initial

    def step(self, moments: Sequence[Moment]) -> tuple[Tensor, Race | None]:
        plans = [self.plan(moment) for moment in moments]
        renoise = together([plan.renoise[i : i + 1] for plan, i in plans])
        words = Words.joined([plan.sample.rows(i, i + 1) for plan, i in plans])
        return renoise, Race(self.noise, words)

    def plan(self, moment: Moment) -> tuple[Plan, int]:
        """The plan that a step is in, and which of its steps it is."""
        part, index = divmod(moment.step, PLANNED)
        return self._plan(moment.seed, moment.block, part), index

    def _planned(self, seed: int, block: int, part: int) -> Plan:
        steps = range(part * PLANNED, (part + 1) * PLANNED)
        draws = [(0, INITIAL), *((s, RENOISE) for s in steps), *((s, SAMPLE) for s in steps)]
        words = self.noise.words([Key.of(seed, block, *draw) for draw in draws])
        ids = self.noise.ids(words.rows(0, 1 + PLANNED))
        sample = self.noise.with_tokens(words.rows(1 + PLANNED, len(draws)))
        return Plan(ids[0], ids[1:], sample)

    def invert(self, moments: Sequence[Moment], probabilities: Tensor) -> Tensor:
        raise TypeError("seeded draws sample by a race, not by inverting a distribution")


def together(parts: Sequence[Tensor]) -> Tensor:
    """Parts of one row each as one tensor; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


class TapeDraws:
    """Every draw read from arrays `[C, L]`, `[C, N, L]`, `[C, N, L]`; one request only."""

    def __init__(self, init: Tensor, uniform: Tensor, renoise: Tensor) -> None:
        self.init, self.uniform, self.renoised = init, uniform, renoise

    def initial(self, seed: int, block: int) -> Tensor:
        return self.init[block]

    def step(self, moments: Sequence[Moment]) -> tuple[Tensor, Race | None]:
        return torch.stack([self.renoised[m.block, m.step] for m in moments]), None

    def invert(self, moments: Sequence[Moment], probabilities: Tensor) -> Tensor:
        """The first id whose cumulative probability exceeds u; the last id if none does."""
        cumulative = probabilities.double().cumsum(-1)
        cumulative = cumulative / cumulative[..., -1:]
        u = torch.stack([self.uniform[m.block, m.step] for m in moments]).double()
        below = (cumulative <= u[..., None]).sum(-1)
        return below.clamp(max=probabilities.shape[-1] - 1)
