"""Two runs side by side, and which of their differences exceed the noise.

Knows samples of two runs' records; a difference counts where a permutation test says that labels
matter, with Holm's correction for how many differences are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dgemma_loadtest.metrics.bootstrap import Estimate, bootstrap
from dgemma_loadtest.metrics.latency import between_blocks, end_to_end, first_block
from dgemma_loadtest.metrics.quantiles import Floats, percentile
from dgemma_loadtest.metrics.throughput import user_rate
from dgemma_loadtest.records import Outcome, Record

LEVEL = 0.05
PERMUTATIONS = 2000
SEED = 20_251
FEWEST = 8  # values of each run, below which nothing can be told
METHOD = (
    f"Permutation test of {PERMUTATIONS} relabellings with requests as units, Holm's correction, "
    "5 %; intervals of B over A by bootstrap, 95 %."
)
Values = Callable[[Record], Iterable[float]]
Statistic = Callable[[Floats], float]


@dataclass(frozen=True)
class Difference:
    """One figure of a stage in both runs; `differs` is None where samples are too small."""

    stage: str
    what: str
    unit: str
    a: float
    b: float
    counts: tuple[int, int]
    ratio: Estimate | None  # b / a; None where a is 0 or a sample is too small
    p: float | None
    differs: bool | None = None


def compare(a: Sequence[Record], b: Sequence[Record]) -> list[Difference]:
    """Of every stage that both have; units of chance are requests, each of which counts once."""
    stages = [name for name in dict.fromkeys(r.stage for r in a) if any(r.stage == name for r in b)]
    found = [
        difference
        for stage in stages
        for difference in _stage(stage, *([r for r in of if r.stage == stage] for of in (a, b)))
    ]
    return _holm(found)


def _stage(stage: str, a: Sequence[Record], b: Sequence[Record]) -> Iterator[Difference]:
    both = [[r for r in records if not r.warmup] for records in (a, b)]
    for what, (unit, values, statistic) in _FIGURES.items():
        samples = [_sample(records, values) for records in both]
        if all(len(sample) for sample in samples):
            yield _difference(stage, what, unit, statistic, *samples)


def _sample(records: Sequence[Record], values: Values) -> Floats:
    return np.array([value for record in records for value in values(record)])


def _difference(
    stage: str, what: str, unit: str, statistic: Statistic, a: Floats, b: Floats
) -> Difference:
    first, second = statistic(a), statistic(b)
    found = Difference(stage, what, unit, first, second, (len(a), len(b)), None, None)
    if min(len(a), len(b)) < FEWEST:
        return found

    def ratio(x: Floats, y: Floats) -> float:
        below = statistic(x)
        return statistic(y) / below if below else float("inf")

    estimate = bootstrap(ratio, a, b) if first else None
    return replace(found, ratio=estimate, p=_permuted(statistic, a, b))


def _permuted(statistic: Statistic, a: Floats, b: Floats) -> float:
    """How often labels that mean nothing make a difference at least so large."""
    rng, every = np.random.default_rng(SEED), np.concatenate([a, b])
    seen = abs(statistic(a) - statistic(b)) * (1 - 1e-12)
    larger = 0
    for _ in range(PERMUTATIONS):
        rng.shuffle(every)
        larger += abs(statistic(every[: len(a)]) - statistic(every[len(a) :])) >= seen
    return (larger + 1) / (PERMUTATIONS + 1)


def _holm(found: Sequence[Difference]) -> list[Difference]:
    """From the smallest p on, each against what is left of the level, until one does not hold."""
    tested = sorted((d.p, k) for k, d in enumerate(found) if d.p is not None)
    verdicts: dict[int, bool] = {}
    holds = True
    for rank, (p, k) in enumerate(tested):
        holds = holds and p <= LEVEL / (len(tested) - rank)
        verdicts[k] = holds
    return [replace(d, differs=verdicts.get(k)) for k, d in enumerate(found)]


def _known(value: float | None) -> Iterable[float]:
    return () if value is None else (value,)


def _p99(values: Floats) -> float:
    return percentile(values, 0.99)


def _p50(values: Floats) -> float:
    return percentile(values, 0.5)


def _mean(values: Floats) -> float:
    return float(values.mean())


def _slowest_block(record: Record) -> Iterable[float]:
    return _known(max(between_blocks(record), default=None))


def _steps(record: Record) -> Iterable[float]:
    counts = record.usage.steps if record.usage else ()
    return _known(sum(counts) / len(counts) if counts else None)


def _not_ok(record: Record) -> Iterable[float]:
    if record.outcome is not Outcome.CANCELLED:
        yield float(record.outcome is not Outcome.OK)


_FIGURES: dict[str, tuple[str, Values, Statistic]] = {
    "first block, p50": ("s", lambda r: _known(first_block(r)), _p50),
    "first block, p99": ("s", lambda r: _known(first_block(r)), _p99),
    "slowest block of an answer, p50": ("s", _slowest_block, _p50),
    "end, p50": ("s", lambda r: _known(end_to_end(r)), _p50),
    "end, p99": ("s", lambda r: _known(end_to_end(r)), _p99),
    "tokens/s of a user, p50": ("tokens/s", user_rate, _p50),
    "steps of a block, mean": ("steps", _steps, _mean),
    "requests that failed": ("share", _not_ok, _mean),
}
