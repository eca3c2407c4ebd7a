"""The plots of one run: distributions, steps and waste.

Knows records and figures; knows nothing of pages. None stands for a plot with nothing to show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from dgemma_loadtest.metrics.latency import CUT_OFF, between_blocks, end_to_end, first_block
from dgemma_loadtest.metrics.summary import Group, StageSummary, Summary
from dgemma_loadtest.records import Record
from dgemma_loadtest.report.svg.layers import Bars, Layer, Line
from dgemma_loadtest.report.svg.plot import Axis, Mark, Plot, percent
from dgemma_loadtest.report.svg.scale import Scale
from dgemma_loadtest.report.words import seconds

MOST_CURVES = 5
MOST_POINTS = 400  # of a curve: more cannot be seen
SHARES = Scale(0.0, 1.0)
_LATENCIES: dict[str, tuple[str, str, Callable[[Record], Iterable[float]], bool]] = {
    "ttfb": (
        "Time to the first block",
        "from when a request was due",
        lambda record: _known(first_block(record)),
        True,
    ),
    "block": ("Time between blocks", "of one answer", between_blocks, False),
    "e2e": (
        "Time to the end of an answer",
        "from when a request was due",
        lambda record: _known(end_to_end(record)),
        True,
    ),
}


def distributions(
    summary: Summary, records: Sequence[Record], limits: dict[str, float]
) -> list[Plot]:
    """Empirical distribution functions, one curve a stage."""
    plots = (_distribution(name, summary, records, limits) for name in _LATENCIES)
    return [plot for plot in plots if plot is not None]


def _distribution(
    name: str, summary: Summary, records: Sequence[Record], limits: dict[str, float]
) -> Plot | None:
    title, since, values, whole = _LATENCIES[name]
    curves: list[Layer] = []
    for colour, (label, theirs) in enumerate(_samples(summary, records)):
        found = sorted(value for record in theirs for value in values(record))
        # What was waited for in vain has no value, but it is longer than what came.
        lost = sum(r.outcome in CUT_OFF and not list(values(r)) for r in theirs) if whole else 0
        if found:
            points = _curve(found, len(found) + lost)
            curves.append(Line(points, label, colour, stairs=True))
    if not curves:
        return None
    return Plot(
        name,
        title,
        Axis("seconds, logarithmic", log=True),
        Axis("requests, %" if whole else "blocks, %", form=percent, scale=SHARES),
        tuple(curves),
        (Mark(limits[name], f"SLO {seconds(limits[name])}"),) if name in limits else (),
        f"Share that took at most so long, {since}."
        + (" Requests that were cut off never reach the curve." if whole else ""),
        summary.kind,
    )


def _samples(summary: Summary, records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """Of every stage, or of every tenant of every stage where that is not too much to see."""
    theirs: dict[tuple[str, str], list[Record]] = {}
    for record in (record for record in records if not record.warmup):
        theirs.setdefault((record.stage, record.tenant), []).append(record)
    if len({tenant for _, tenant in theirs}) > 1 and len(theirs) <= MOST_CURVES:
        return [(f"{stage}: {tenant}", found) for (stage, tenant), found in theirs.items()]
    return [
        (
            stage.name,
            [r for (name, _), found in theirs.items() if name == stage.name for r in found],
        )
        for stage in _some(summary.stages)
    ]


def _curve(ordered: list[float], count: int) -> list[tuple[float, float]]:
    """Points (value, share) of the distribution function, thinned where nobody could tell."""
    step = max(1, len(ordered) // MOST_POINTS)
    ranks = sorted({*range(0, len(ordered), step), len(ordered) - 1})
    return [(ordered[0], 0.0), *((ordered[rank], (rank + 1) / count) for rank in ranks)]


def steps(summary: Summary) -> Plot | None:
    """How many denoise steps blocks took, all stages together."""
    counts: dict[int, int] = {}
    for stage in summary.stages:
        for number, blocks in _all(stage).tokens.steps_histogram.items():
            counts[number] = counts.get(number, 0) + blocks
    total = sum(counts.values())
    if not total:
        return None
    mean = sum(number * blocks for number, blocks in counts.items()) / total
    bars = [(number, 0.0, blocks / total) for number, blocks in sorted(counts.items())]
    said = [f"{number} steps: {blocks} blocks" for number, blocks in sorted(counts.items())]
    return Plot(
        "steps",
        "Denoise steps of a block",
        Axis("steps", scale=Scale(0.0, max(counts) + 1.0)),
        Axis("blocks, %", form=percent),
        (Bars(bars, 0.8, "", 0, say=said),),
        (Mark(mean, f"mean {mean:.1f}"),),
        f"{total} blocks. Each step is a pass of the network over the whole canvas.",
        summary.kind,
    )


def waste(summary: Summary) -> Plot | None:
    """Tokens that were denoised and that nobody got, by prompt class or by stage."""
    groups = [(g.name, g) for s in summary.stages for g in s.groups if g.by == "class"]
    if not groups or len(summary.stages) > 1:
        groups = [(stage.name, _all(stage)) for stage in summary.stages]
    told = [(n, g.tokens.useful, g.tokens.committed) for n, g in groups if g.tokens.committed]
    if not told:
        return None
    told = told[:8]
    useful, wasted, said = [], [], []
    for at, (name, used, committed) in enumerate(told):
        share = (used or 0) / committed if committed else 0.0
        useful.append((float(at), 0.0, share))
        wasted.append((float(at), share, 1.0))
        said.append(f"{name}: {1 - share:.1%} of {committed} tokens")
    names = {float(at): name[:16] for at, (name, _, _) in enumerate(told)}
    return Plot(
        "waste",
        "What becomes of a canvas",
        Axis("stage or prompt class", names=names, ticks=list(names), scale=_around(len(told))),
        Axis("committed tokens, %", form=percent, scale=SHARES),
        (
            Bars(useful, 0.6, "useful: the client gets them", 0, say=said),
            Bars(wasted, 0.6, "waste: behind the end of the answer", 3, say=said),
        ),
        (),
        "A canvas is denoised whole, however short the answer is.",
        summary.kind,
    )


def _around(count: int) -> Scale:
    return Scale(-0.6, count - 0.4)


def _all(stage: StageSummary) -> Group:
    return stage.groups[0]


def _some(stages: Sequence[StageSummary]) -> list[StageSummary]:
    """All, or the first, the last and some between."""
    if len(stages) <= MOST_CURVES:
        return list(stages)
    last = len(stages) - 1
    return [stages[round(k * last / (MOST_CURVES - 1))] for k in range(MOST_CURVES)]


def _known(value: float | None) -> Iterable[float]:
    return () if value is None else (value,)
