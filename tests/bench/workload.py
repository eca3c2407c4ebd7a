"""What the benchmark asks, the same of every implementation.

Knows requests; knows nothing of who answers them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from dgemma_build.demo.prompts import Task, counts, sudokus

SEED = 7
SUDOKUS, COUNTS = 8, 4  # in one round
LONGEST = 384  # new tokens, four canvases of the demo checkpoint
# Fixed work for what is not about quality: every canvas runs this many steps.
FIXED_STEPS = 48
FIXED = {"max_denoising_steps": FIXED_STEPS, "confidence_threshold": 0.0, "ignore_eos": True}


@dataclass(frozen=True)
class Measured:
    """One round of requests, one after another."""

    seconds: float
    tokens: int  # of answers, up to their stop ids
    steps: int
    right: int
    asked: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@cache
def tasks() -> list[Task]:
    """Made once: digging puzzles takes longer than solving them."""
    return [*sudokus(SUDOKUS, 30, SEED), *counts(COUNTS, SEED)]
