"""Where a service stops keeping up, and where another one overtakes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from dgemma_loadtest.metrics.summary import StageSummary

KEEPS_UP = 0.9


@dataclass(frozen=True)
class Knee:
    """`at`: users or requests per second; `about`: by which rule."""

    at: float
    about: str


def offered(stage: StageSummary) -> float:
    """Users, or requests per second, of all loads together."""
    return sum(stage.offered.values())


def knee(stages: Sequence[StageSummary]) -> Knee | None:
    """Of rates, the last that was kept up with; of users, the first with nearly all there is.

    None where the sweep does not show it: every rate was kept up with, or the last stage brought
    the most tokens by far.
    """
    if any("per s" in stage.name for stage in stages):
        return _of_rates(stages)
    rates = [(offered(s), s.groups[0].throughput.tokens_per_s) for s in stages if s.groups]
    told = [(at, rate) for at, rate in rates if rate]
    if len(told) < 3:
        return None
    most = max(rate for _, rate in told)
    at = next(at for at, rate in told if rate >= KEEPS_UP * most)
    if at == told[-1][0]:
        return None
    return Knee(at, f"Knee: the fewest users that get {100 * KEEPS_UP:.0f} % of the most tokens/s.")


def overtaken(
    ours: Sequence[tuple[float, float]], theirs: Sequence[tuple[float, float]]
) -> float | None:
    """From where on the other curve is the higher one, on a straight line between two points of
    logarithmic x; None where it never is, or is from the start.
    """
    other = dict(theirs)
    ahead = [(x, math.log(other[x] / y)) for x, y in ours if y > 0 and other.get(x, 0) > 0]
    for (before, low), (after, high) in pairwise(ahead):
        if low < 0 <= high:
            return float(before * (after / before) ** (low / (low - high)))
    return None


def _of_rates(stages: Sequence[StageSummary]) -> Knee | None:
    kept = None
    for stage in stages:
        done = stage.groups[0].throughput.completed_per_s if stage.groups else None
        if done is None or done < KEEPS_UP * offered(stage):
            break
        kept = offered(stage)
    else:
        return None
    if kept is None:
        return None
    return Knee(kept, f"Knee: the last rate of which {100 * KEEPS_UP:.0f} % was completed.")
