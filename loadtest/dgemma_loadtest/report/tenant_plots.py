"""What each tenant was served over time, beside what its weight promises."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from dgemma_loadtest.metrics.service import curve
from dgemma_loadtest.metrics.summary import StageSummary, Summary
from dgemma_loadtest.records import Record
from dgemma_loadtest.report.svg.layers import Layer, Line
from dgemma_loadtest.report.svg.plot import Axis, Plot

MOST_TENANTS = 6
SAMPLES = 120


def service(summary: Summary, records: Sequence[Record]) -> list[Plot]:
    """One plot for each stage with several tenants."""
    plots = (
        _service(stage, [r for r in records if r.stage == stage.name], summary.kind)
        for stage in summary.stages
        if stage.fairness is not None
    )
    return [plot for plot in plots if plot is not None]


def _service(stage: StageSummary, records: Sequence[Record], kind: str) -> Plot | None:
    by_tenant: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_tenant[record.tenant].append(record)
    curves = {t: curve(theirs) for t, theirs in by_tenant.items()}
    had = {t: float(c.served[-1]) if len(c.served) else 0.0 for t, c in curves.items()}
    shown = sorted(had, key=lambda t: had[t], reverse=True)[:MOST_TENANTS]
    times = [c.times for t, c in curves.items() if t in shown and len(c.times)]
    if not times:
        return None
    begins, ends = min(t[0] for t in times), max(t[-1] for t in times)
    at = np.linspace(begins, ends, SAMPLES)
    lines: list[Layer] = []
    for colour, tenant in enumerate(sorted(shown)):
        weight = by_tenant[tenant][0].weight
        served = curves[tenant].at(at) / weight
        points = list(zip((at - begins).tolist(), served.tolist(), strict=True))
        lines.append(Line(points, f"{tenant} (weight {weight:g})", colour))
    slug = "".join(c if c.isalnum() else "-" for c in stage.name)
    return Plot(
        f"service-{slug}",
        f"Service by weight: {stage.name}",
        Axis("seconds since the stage's first pass"),
        Axis("rows of passes by weight, summed up"),
        tuple(lines),
        about="While tenants wait for slots at the same time, fair curves run in parallel.",
        kind=kind,
    )
