"""A look at what a scheduler holds and has done. Knows numbers and nothing of where they go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class CacheStats:
    """Of a prefix cache; without one, zeros."""

    lookups: int = 0  # complete blocks of prompts, when a request gets a slot
    hits: int = 0  # of these, those that were there
    evictions: int = 0
    nbytes: int = 0  # held at present


@dataclass(frozen=True)
class SchedulerStats:
    """A snapshot for metrics and logs, which any thread may take.

    Counts begin with the process and never fall. They are not all of one moment: of a pass that is
    just ending, some may count already.
    """

    slots: int = 0
    running: int = 0
    waiting: int = 0
    preemptions: int = 0  # slots given up at a block border, for another request's sake
    passes_by_rows: Mapping[int, int] = field(default_factory=dict)  # rows of a pass -> passes
    encode_rows: int = 0  # of all these passes
    denoise_rows: int = 0
    pass_s: float = 0.0  # seconds in passes, tail included
    reruns: int = 0  # of passes, because an expert overflowed
    cache: CacheStats = CacheStats()

    @property
    def passes(self) -> int:
        return sum(self.passes_by_rows.values())
