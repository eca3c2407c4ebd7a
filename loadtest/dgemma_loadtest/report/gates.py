"""What a run has to hold, as gates: each is passed, failed or has nothing to say.

Knows limits and figures; knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dgemma_loadtest.metrics.summary import Summary
from dgemma_loadtest.report.words import number, share

GOOD_SHARE = 0.95
Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Gate:
    """`stage` is empty where it is of the whole run."""

    stage: str
    name: str
    outcome: Outcome
    said: str
    seconds: float = 0.0


def gates(
    summary: Summary,
    limits: dict[str, float],
    good_share: float,
    baseline: Summary | None = None,
) -> list[Gate]:
    """Of every stage its SLO and its fairness; of the run, and a baseline's, generator and end."""
    found = [*_of_stages(summary, limits, good_share), *_of_run(summary, "")]
    return found if baseline is None else [*found, *_of_run(baseline, "baseline: ")]


def failed(found: list[Gate]) -> bool:
    return any(gate.outcome == "failed" for gate in found)


def _of_stages(summary: Summary, limits: dict[str, float], good_share: float) -> Iterator[Gate]:
    wanted = ",".join(f"{name}={value:g}" for name, value in limits.items())
    for stage in summary.stages:
        good = stage.groups[0].goodput if stage.groups else None
        if limits:
            name = f"slo {wanted}"
            if good is None or good.share is None:
                yield Gate(stage.name, name, "skipped", "no request was due", stage.seconds)
            else:
                kept = good.share.value >= good_share
                missed = ", ".join(f"{count} {what}" for what, count in good.missed.items())
                yield Gate(
                    *(stage.name, name, "passed" if kept else "failed"),
                    f"{share(good.share.value)} of {good.requests} were good, at least "
                    f"{share(good_share)} have to be" + (f"; missed: {missed}" if missed else ""),
                    stage.seconds,
                )
        gap = stage.fairness.gap if stage.fairness else None
        if gap is not None:
            yield Gate(
                *(stage.name, "service gap", "passed" if gap.holds else "failed"),
                f"{number(gap.value)} rows by weight between {' and '.join(gap.tenants)}, bound "
                f"{number(gap.bound)}",
                stage.seconds,
            )


def _of_run(summary: Summary, whose: str) -> Iterator[Gate]:
    reasons = "; ".join(summary.overhead.reasons) or "fast enough"
    fast = not summary.overhead.spoiled
    yield Gate("", f"{whose}generator", "passed" if fast else "failed", reasons)
    said = f"the run is {summary.state}"
    yield Gate("", f"{whose}complete", _ENDS.get(summary.state, "failed"), said)


# Who ends a run with Ctrl-C knows that it is not whole.
_ENDS: dict[str, Outcome] = {"complete": "passed", "interrupted": "skipped"}
