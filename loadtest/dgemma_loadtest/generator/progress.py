"""What is shown while a run goes on; the figures that count are made of its records, afterwards."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

from dgemma_loadtest.metrics.latency import first_block
from dgemma_loadtest.metrics.quantiles import percentile
from dgemma_loadtest.records import Outcome, Record

RECENT = 200  # requests that the shown latency is of


@dataclass(frozen=True)
class Progress:
    """Counts since the run began; `ttfb_p50_s` is of the last requests."""

    stage: str
    stage_number: int
    stages: int
    elapsed_s: float  # in the stage
    duration_s: float
    sent: int
    open: int
    outcomes: dict[str, int]
    blocks: int
    tokens: int
    ttfb_p50_s: float | None
    lag_p99_s: float | None


class Tally:
    """Counts records as they come."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.blocks = self.tokens = 0
        self._firsts: deque[float] = deque(maxlen=RECENT)
        self._lags: deque[float] = deque(maxlen=RECENT)

    def add(self, record: Record) -> None:
        self.outcomes[record.outcome.value] += 1
        self.blocks += len(record.chunks)
        if record.usage is not None and record.outcome is Outcome.OK:
            self.tokens += record.usage.useful_tokens or 0
        first = first_block(record)
        if first is not None:
            self._firsts.append(first)
        if record.started_s is not None:
            self._lags.append(record.lag_s)

    @property
    def ttfb_p50_s(self) -> float | None:
        return percentile(self._firsts, 0.5) if self._firsts else None

    @property
    def lag_p99_s(self) -> float | None:
        return percentile(self._lags, 0.99) if self._lags else None
