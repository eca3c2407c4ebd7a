"""Tokens per second of a closed loop without end, and where one model overtakes the other.

Knows mean work of an answer; knows nothing of queues or of how requests fall together: that is
`modelled.engine`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dgemma_loadtest.metrics.bootstrap import RESAMPLES, SEED, Estimate
from dgemma_loadtest.metrics.quantiles import CONFIDENCE
from dgemma_loadtest.modelled.roofline import Machine
from dgemma_loadtest.modelled.steps import Steps, means

MOST = 1024  # concurrent requests that are looked at
_PRECISION = 1e-3


@dataclass(frozen=True)
class Workload:
    """Answers end evenly likely at every token; the mean is an assumption, not published."""

    prompt_tokens: int = 512
    answer_tokens: int = 512

    @property
    def context(self) -> float:
        """In the mean over an answer."""
        return self.prompt_tokens + self.answer_tokens / 2

    def canvases(self, canvas: int) -> float:
        """Of an answer in the mean, the last one filled in part."""
        return 1 / -math.expm1(-canvas / self.answer_tokens)


def diffusion_rate(machine: Machine, load: Workload, steps: float, users: float) -> float:
    """Useful tokens per second of all users; commits run beside the next canvas's first step."""
    canvas = machine.network.canvas_tokens
    canvases, chunks = load.canvases(canvas), load.prompt_tokens / canvas
    passes = canvases * steps + chunks  # a chunk of a prompt takes its request's turn
    rows = canvases * steps + (canvases - 1) + chunks
    denoising = users * canvases * steps / passes
    took = machine.diffusion_s(users * rows / passes, denoising, load.context)
    return users * load.answer_tokens / (passes * took)


def autoregressive_rate(machine: Machine, load: Workload, users: float) -> float:
    """Of the same loop with a token a pass. A prompt is read in one of them, which all wait for:
    as many passes as there are users have one, where answers have more tokens than that.
    """
    reading = min(1.0, users / load.answer_tokens)  # share of passes with a prompt in them
    prompts = users * load.prompt_tokens / (load.answer_tokens * reading)
    without = machine.autoregressive_s(users, 0, load.context)
    with_one = machine.autoregressive_s(users, prompts, load.context)
    return users / ((1 - reading) * without + reading * with_one)


def crossover(machine: Machine, load: Workload, steps: float) -> float | None:
    """From how many concurrent requests on the autoregressive model gives more tokens per second.

    None where it never does, up to MOST. On one machine cost and energy follow tokens per second.
    """

    def ahead(users: float) -> float:
        return autoregressive_rate(machine, load, users) / diffusion_rate(
            machine, load, steps, users
        )

    counts = np.geomspace(1, MOST, 81)
    after = next((k for k, users in enumerate(counts) if ahead(float(users)) >= 1), None)
    if after is None:
        return None
    if after == 0:
        return 1.0
    low, high = float(counts[after - 1]), float(counts[after])
    while high - low > _PRECISION * high:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if ahead(middle) >= 1 else (middle, high)
    return high


def crossover_of(machine: Machine, load: Workload, steps: Steps) -> Estimate | None:
    """With 95 % confidence from the sample of steps: more steps, an earlier crossover."""
    value = crossover(machine, load, steps.mean)
    if value is None:
        return None
    tail = (1 - CONFIDENCE) / 2
    few, many = np.quantile(means(steps.sample, RESAMPLES, SEED), [tail, 1 - tail])
    if few == many:
        return Estimate(value)
    low, high = (crossover(machine, load, float(mean)) for mean in (many, few))
    return Estimate(value, low, high)
