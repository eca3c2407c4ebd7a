"""Where a service stops keeping up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
