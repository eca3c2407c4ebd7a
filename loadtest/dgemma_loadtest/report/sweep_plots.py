"""The plots of a sweep: what comes out, and how long it takes, over what is offered.

Knows stages of one run, and of a baseline under the same load; knows nothing of single requests.
"""

from __future__ import annotations

from itertools import pairwise

from dgemma_loadtest.metrics.summary import Summary
from dgemma_loadtest.report.knee import Knee, knee, offered, overtaken
from dgemma_loadtest.report.svg.layers import Band, Layer, Line
from dgemma_loadtest.report.svg.plot import Axis, Mark, Plot
from dgemma_loadtest.report.words import seconds


def sweep(summary: Summary, baseline: Summary | None = None) -> list[Plot]:
    """What comes out, and how long it takes, over what is offered; from three stages on."""
    if not _is_sweep(summary):
        return []
    users = _by_users(summary)
    name = "concurrent users" if users else "requests offered, per second"
    x = Axis(name, log=True, ticks=[offered(stage) for stage in summary.stages] if users else None)
    found = knee(summary.stages)
    marks = () if found is None else (Mark(found.at, f"knee: {found.at:g}"),)
    plots = [_throughput(summary, baseline, x, marks), _waits(summary, x, marks, found)]
    return [plot for plot in plots if plot is not None]


def _throughput(
    summary: Summary, baseline: Summary | None, x: Axis, marks: tuple[Mark, ...]
) -> Plot | None:
    rates = [(offered(s), s.groups[0].throughput.tokens_per_s) for s in summary.stages]
    points = [(at, rate) for at, rate in rates if rate is not None]
    if not points:
        return None
    said = [f"{at:g}: {rate:.0f} tokens/s" for at, rate in points]
    layers: list[Layer] = [Line(points, "this service", 0, marks=True, say=said)]
    if baseline is not None:
        other = [(offered(s), s.groups[0].throughput.tokens_per_s) for s in baseline.stages]
        theirs = [(at, rate) for at, rate in other if rate is not None]
        said = [f"{at:g}: {rate:.0f} tokens/s" for at, rate in theirs]
        layers.append(Line(theirs, "baseline", 1, marks=True, say=said))
        crossing = overtaken(points, theirs)
        if crossing is not None:
            marks = (*marks, Mark(crossing, f"the baseline overtakes: {crossing:.3g}", 1))
    return Plot(
        "sweep",
        "Tokens per second, of all users together",
        x,
        Axis("useful tokens/s"),
        tuple(layers),
        marks,
        "Useful tokens: what clients got, without what lies behind an answer's end.",
        summary.kind,
    )


def _waits(summary: Summary, x: Axis, marks: tuple[Mark, ...], found: Knee | None) -> Plot | None:
    layers: list[Layer] = []
    for colour, (level, label) in enumerate((("p50", "p50"), ("p95", "p95"), ("p99", "p99"))):
        points, band = [], []
        for stage in summary.stages:
            quantile = getattr(stage.groups[0].latency.e2e_s, level)
            if quantile is not None and quantile.value > 0:
                points.append((offered(stage), quantile.value))
                if quantile.low and quantile.high:
                    band.append((offered(stage), quantile.low, quantile.high))
        layers += [Band(band, "", colour)] if len(band) > 1 else []
        said = [f"{at:g}: {label} {seconds(value)}" for at, value in points]
        layers.append(Line(points, label, colour, marks=True, say=said))
    if not any(list(layer.xs()) for layer in layers):
        return None
    return Plot(
        "sweep-latency",
        "Time to the end of an answer",
        x,
        Axis("seconds, logarithmic", log=True),
        tuple(layers),
        marks,
        "Shaded: 95 % confidence. " + ("" if found is None else found.about),
        summary.kind,
    )


def _is_sweep(summary: Summary) -> bool:
    offers = [offered(stage) for stage in summary.stages if stage.groups]
    return len(offers) >= 3 and all(a < b for a, b in pairwise(offers))


def _by_users(summary: Summary) -> bool:
    return all(offered(stage).is_integer() for stage in summary.stages) and not any(
        "per s" in stage.name for stage in summary.stages
    )
