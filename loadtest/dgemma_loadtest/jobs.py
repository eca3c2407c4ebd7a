"""Requests before they are sent: a load's entries become jobs, the same for the same seed.

Knows what is drawn for a request and from which stream of random numbers; knows nothing of time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dgemma_loadtest.fit import Fit
from dgemma_loadtest.loads import Between, Load
from dgemma_loadtest.prompts import Library, Prompt, draw


@dataclass(frozen=True)
class Job:
    """One request. `cancel_*`: when its user leaves."""

    id: str
    user: int
    prompt: Prompt
    task: Literal["generate", "infill"]
    max_new_tokens: int | None
    timeout_s: float
    seed: int
    tenant: str = "default"
    sampling: dict[str, Any] = field(default_factory=dict)
    cancel_after_s: float | None = None
    cancel_after_blocks: int | None = None


class JobSource:
    """Jobs of one user of a load, or of all of an open loop's arrivals."""

    def __init__(
        self, load: Load, entries: Library, fit: Fit, rng: np.random.Generator, prefix: str
    ) -> None:
        self._load, self._entries, self._fit, self._rng = load, entries, fit, rng
        self._prefix, self._number = prefix, 0

    def next(self, user: int | None = None) -> Job:
        """`user` None: the job's own number."""
        load, rng, number = self._load, self._rng, self._number
        self._number += 1
        answer = self._answer()
        name = f"{self._prefix}-{number}"
        prompt = draw(
            load.prompts,
            self._entries,
            rng,
            tokens=load.prompt_tokens,
            most_tokens=self._fit.prompt(answer),
            characters_per_token=self._fit.characters,
            mark=f"No. {int(rng.integers(1 << 40)):x}" if load.fresh else None,
            infill=load.task == "infill",
        )
        leaves = load.cancel is not None and rng.random() < load.cancel.share
        return Job(
            id=name,
            user=number if user is None else user,
            prompt=prompt,
            task=load.task,
            max_new_tokens=answer,
            timeout_s=load.timeout_s,
            seed=int(rng.integers(1 << 31)),
            tenant=load.tenant,
            sampling=load.sampling,
            cancel_after_s=load.cancel.after_s if load.cancel and leaves else None,
            cancel_after_blocks=load.cancel.after_blocks if load.cancel and leaves else None,
        )

    def think(self) -> float:
        """Seconds before the next request of a closed loop."""
        if not self._load.think_s or self._load.think == "constant":
            return self._load.think_s
        return float(self._rng.exponential(self._load.think_s))

    def _answer(self) -> int | None:
        match self._load.answer_tokens:
            case None:
                return None
            case int(tokens):
                asked = tokens
            case Between():
                limits = self._load.answer_tokens
                asked = int(self._rng.integers(limits.min, limits.max + 1))
            case choices:
                asked = int(self._rng.choice(choices))
        return self._fit.answer(asked)


def stream(seed: int, *place: int) -> np.random.Generator:
    """Random numbers of their own for a place: stage, load, user."""
    return np.random.default_rng(np.random.SeedSequence([seed, *place]))
