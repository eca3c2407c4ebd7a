"""The plots of an evaluation: where autoregressive decoding overtakes, what comes out, its cost.

Knows cells and crossovers; knows nothing of where they come from but their basis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from dgemma_loadtest import platforms
from dgemma_loadtest.evaluate.results import Cell, Crossover, Results
from dgemma_loadtest.modelled.roofline import READINGS
from dgemma_loadtest.platforms import Kind
from dgemma_loadtest.report.svg.layers import Band, Layer, Line
from dgemma_loadtest.report.svg.plot import Axis, Mark, Plot
from dgemma_loadtest.report.svg.scale import Scale
from dgemma_loadtest.report.words import number

KIND_COLOURS: dict[Kind, int] = {"diffusion": 0, "autoregressive": 1}
_TICKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_USERS = "requests at once"
Value = Callable[[Cell], float | None]


def crossovers(results: Results) -> list[Plot]:
    """One bar a platform and reading: between the steps of both extremes, a mark at the asked."""
    found = [c for c in results.crossovers if c.users is not None]
    lines = list(dict.fromkeys((c.platform, c.precision, c.reading) for c in found))
    if not lines:
        return []
    layers: list[Layer] = []
    names: dict[float, str] = {}
    for at, key in enumerate(reversed(lines)):
        theirs = [c for c in found if (c.platform, c.precision, c.reading) == key]
        place, precision, reading = key
        names[float(at)] = f"{place}-{precision}, {reading}" if reading else place
        layers += _range(theirs, float(at), READINGS.index(reading) if reading else 2)
    return [
        Plot(
            "crossover",
            "From how many requests at once autoregressive decoding gives more tokens/s",
            Axis(_USERS, log=True, ticks=_TICKS, scale=Scale(0.9, 130, log=True)),
            Axis("platform", scale=Scale(-0.6, len(lines) - 0.4), ticks=list(names), names=names),
            tuple(layers),
            about="Left of a bar diffusion gives more, right of it autoregressive. Line: from the "
            "cap of 48 steps to 16 fixed ones; mark: the steps as published, shaded 95 % of their "
            "mean. Sum and max are two readings of the same published figure. On one machine, "
            "cost and energy of a token cross at the same place.",
            kind="simulated",
            left=150,
        )
    ]


def _range(theirs: Sequence[Crossover], at: float, colour: int) -> Iterator[Layer]:
    every = sorted(c.users for c in theirs if c.users is not None)
    label = f"by the {theirs[0].reading} of both times" if theirs[0].reading else "measured"
    yield Line([(every[0], at), (every[-1], at)], "", colour)
    for one in (c for c in theirs if not c.steps.endswith("fixed") and c.users is not None):
        said = f"{one.platform}, {one.steps} steps: {number(one.users)}"
        if one.low is not None and one.high is not None:
            said += f" ({number(one.low)} to {number(one.high)})"
            yield Band(
                [(one.low, at - 0.22, at + 0.22), (one.high, at - 0.22, at + 0.22)], "", colour
            )
        assert one.users is not None, "filtered"
        yield Line([(one.users, at)], label, colour, marks=True, say=[said])


def totals(results: Results) -> list[Plot]:
    """Tokens per second of all requests together, one plot for each platform and precision."""
    return [_total(results, place, precision) for place, precision in _places(results)]


def _total(results: Results, place: str, precision: str) -> Plot:
    cells = [c for c in results.cells if c.platform == place and c.tenancy == "single"]
    mine = [c for c in cells if c.precision == precision]
    layers: list[Layer] = []
    for kind, colour in KIND_COLOURS.items():
        model = [c for c in mine if c.model == kind and c.basis == "simulated" and c.reading]
        layers += _between(model, kind, colour)
        for basis, how in (("simulated", "service, simulated"), ("measured", "measured")):
            real = [c for c in mine if c.model == kind and c.basis == basis and not c.reading]
            points = _points(real, lambda cell: cell.figures.tokens_per_s)
            if points:
                layers.append(Line(points, f"{kind}, {how}", colour + 2, marks=True))
    told = [c for c in cells if c.basis == "published" and c.precision in (precision, None)]
    for kind, colour in (("diffusion", 4), ("autoregressive", 5)):
        theirs = [c for c in told if c.model == kind]
        if theirs:
            said = [f"{c.how}: {number(c.figures.tokens_per_s)} tokens/s" for c in theirs]
            points = _points(theirs, lambda cell: cell.figures.tokens_per_s)
            layers += [
                Line(
                    [point],
                    f"{kind}, published" if not k else "",
                    colour,
                    marks=True,
                    say=[said[k]],
                )
                for k, point in enumerate(points)
            ]
    marks = [
        Mark(c.users, f"{c.reading}: {number(c.users)}")
        for c in results.crossovers
        if c.platform == place and c.precision == precision and c.users
        if not c.steps.endswith("fixed")
    ]
    return Plot(
        f"total-{place}-{precision}",
        f"{place}, {precision}: tokens per second of all requests",
        Axis(_USERS, log=True, ticks=_TICKS),
        Axis("useful tokens/s, logarithmic", log=True),
        tuple(layers),
        tuple(marks[:2]),
        "Shaded: between both readings of the model, of which the sum is the lower one.",
        "simulated" if all(c.basis != "measured" for c in mine) else "measured",
    )


def _between(cells: Sequence[Cell], kind: Kind, colour: int) -> Iterator[Layer]:
    """The range of both readings, and a line for each."""
    curves = {
        reading: _points(
            [c for c in cells if c.reading == reading], lambda cell: cell.figures.tokens_per_s
        )
        for reading in READINGS
    }
    low, high = (dict(curves[reading]) for reading in READINGS)
    both = [(x, min(low[x], high[x]), max(low[x], high[x])) for x in low if x in high]
    if len(both) > 1:
        yield Band(both, "", colour)
    for reading in READINGS:
        if curves[reading]:
            said = [f"{x:g}: {number(y)} tokens/s" for x, y in curves[reading]]
            dashed = reading != READINGS[0]
            yield Line(
                *(curves[reading], f"{kind}, {reading}", colour, dashed), marks=not dashed, say=said
            )


def costs(results: Results) -> list[Plot]:
    """Money for tokens, by the prices that the platforms' files name."""
    layers: list[Layer] = []
    for colour, (place, precision) in enumerate(_places(results)[:6]):
        for kind in KIND_COLOURS:
            mine = [
                c
                for c in results.cells
                if (c.platform, c.precision, c.model) == (place, precision, kind)
                and c.tenancy == "single"
                and c.reading in (READINGS[0], None)
                and c.basis != "published"
            ]
            points = _points(mine, lambda cell: cell.figures.usd_per_million)
            if points:
                said = [f"{place}, {kind}, {x:g} at once: ${y:.3g}" for x, y in points]
                label = f"{place}-{precision}" if kind == "diffusion" else ""
                layers.append(
                    Line(points, label, colour, kind != "diffusion", marks=True, say=said)
                )
    if not layers:
        return []
    return [
        Plot(
            "cost",
            "What a million tokens cost",
            Axis(_USERS, log=True, ticks=_TICKS),
            Axis("US dollars per million useful tokens, logarithmic", log=True),
            tuple(layers),
            about="Solid: diffusion, by the sum of both times; dashed: autoregressive. The machine "
            "is paid by the hour, so whoever gives more tokens per second costs less.",
            kind="simulated",
        )
    ]


def _points(cells: Iterable[Cell], value: Value) -> list[tuple[float, float]]:
    found = ((float(c.users), value(c)) for c in cells)
    return sorted((x, y) for x, y in found if y)


def _places(results: Results) -> list[tuple[str, str]]:
    """Platforms and precisions that have more than published figures, the usual ones first."""
    pairs = dict.fromkeys(
        (c.platform, c.precision) for c in results.cells if c.basis != "published" and c.precision
    )
    usual = {key: platforms.load(key).default_precision for key in platforms.shipped()}
    return sorted(
        ((place, precision or "") for place, precision in pairs),
        key=lambda pair: usual.get(pair[0]) != pair[1],
    )
