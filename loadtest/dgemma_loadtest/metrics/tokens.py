"""What was written for what was computed: steps, caps, waste and tokens per pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dgemma_loadtest.metrics.quantiles import Distribution, distribution
from dgemma_loadtest.records import Outcome, Record, Usage


@dataclass(frozen=True)
class Tokens:
    """Sums over complete answers whose server told its usage; None where it told nothing."""

    answers: int  # complete, with a usage
    prompt: int | None
    useful: int | None  # tokens that clients got
    committed: int | None  # tokens of finished canvases
    waste: float | None  # share of committed tokens behind an answer's end or its limit
    cached_share: float | None  # of prompt tokens that were not encoded anew
    passes: int | None  # of each request as if none had shared one
    useful_per_pass: float | None
    committed_per_pass: float | None
    service_units: int | None
    blocks: int  # that were denoised: blocks that a template pins throughout have no steps
    steps: Distribution  # of a denoised block
    steps_histogram: dict[int, int]  # blocks by their steps
    cap_hit_rate: float | None  # of denoised blocks
    answer_tokens: Distribution  # useful, of an answer


def tokens(records: Sequence[Record]) -> Tokens:
    usages = [r.usage for r in records if r.outcome is Outcome.OK and r.usage is not None]
    useful, committed = _total(usages, _useful), _total(usages, lambda u: u.committed_tokens)
    prompt, cached = (
        _total(usages, lambda u: u.prompt_tokens),
        _total(usages, lambda u: u.cached_tokens),
    )
    passes, hits = _total(usages, lambda u: u.passes), _total(usages, lambda u: u.cap_hits)
    steps = [count for usage in usages for count in usage.steps if count]
    return Tokens(
        answers=len(usages),
        prompt=prompt,
        useful=useful,
        committed=committed,
        waste=None if useful is None or not committed else 1 - useful / committed,
        cached_share=_ratio(cached, prompt),
        passes=passes,
        useful_per_pass=_ratio(useful, passes),
        committed_per_pass=_ratio(committed, passes),
        service_units=_total(usages, lambda u: u.service_units),
        blocks=len(steps),
        steps=distribution(steps),
        steps_histogram=dict(sorted(Counter(steps).items())),
        cap_hit_rate=_ratio(hits, len(steps)),
        answer_tokens=distribution([n for n in map(_useful, usages) if n is not None]),
    )


def _useful(usage: Usage) -> int | None:
    return usage.useful_tokens


def _total(usages: Sequence[Usage], of: Callable[[Usage], int | None]) -> int | None:
    """The sum; None where any does not say, for a sum of some would be taken for that of all."""
    values = [of(usage) for usage in usages]
    told = [value for value in values if value is not None]
    return sum(told) if told and len(told) == len(values) else None


def _ratio(part: int | None, whole: int | None) -> float | None:
    return None if part is None or not whole else part / whole
