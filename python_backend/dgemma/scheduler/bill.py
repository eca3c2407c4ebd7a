"""What one request has cost so far, and how long it has taken.

Knows counts and clocks; knows nothing of how a request comes to them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dgemma.request import Request
from dgemma.scheduler.events import Usage
from dgemma.scheduler.pace import Clock


@dataclass
class Bill:
    """Counts and clocks of one request."""

    clock: Clock
    submitted: float = field(init=False)
    admitted: float | None = None
    first_block: float | None = None
    last_block: float | None = None
    passes: int = 0
    rows: int = 0
    chunks: int = 0
    cached_tokens: int | None = None
    cap_hits: int = 0
    committed_tokens: int = 0
    denoising_steps: list[int] = field(default_factory=list)
    mean_entropy: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.submitted = self.clock()

    def block(self) -> tuple[float, float]:
        """A block has ended: seconds since the one before or the slot, and since submission."""
        now = self.clock()
        began = self.admitted if self.last_block is None else self.last_block
        self.last_block = now
        if self.first_block is None:
            self.first_block = now
        return now - (self.submitted if began is None else began), now - self.submitted

    def usage(self, request: Request, completion_tokens: int) -> Usage:
        ended = self.clock()

        def since(moment: float | None) -> float:
            return round(((ended if moment is None else moment) - self.submitted) * 1e3, 3)

        return Usage(
            prompt_tokens=len(request.prompt),
            completion_tokens=completion_tokens,
            committed_tokens=self.committed_tokens,
            denoising_steps=tuple(self.denoising_steps),
            cap_hits=self.cap_hits,
            mean_entropy=tuple(round(value, 6) for value in self.mean_entropy),
            passes=self.passes,
            seed=request.sampling.seed,
            queue_ms=since(self.admitted),
            first_block_ms=since(self.first_block),
            total_ms=since(ended),
            prefill_chunks=self.chunks,
            service_units=self.rows,
            cached_tokens=self.cached_tokens or 0,
        )
