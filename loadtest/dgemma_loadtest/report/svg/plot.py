"""One plot: axes with names and units, layers, marks, a legend where there is more than one series.

Knows how a plot looks; knows nothing of load tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from dgemma_loadtest.report.svg.layers import Band, Bars, Layer, Line, Point
from dgemma_loadtest.report.svg.scale import Scale, linear, logarithmic

WIDTH, HEIGHT = 560, 330
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 22, 48

Form = Callable[[float], str]


def plain(value: float) -> str:
    """A tick's number: 0.05, 20, 1 500, 2 M."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g} M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.3g} k"
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}"


def percent(value: float) -> str:
    return f"{100 * value:.3g}"


@dataclass(frozen=True)
class Axis:
    """`name` says the unit. Without a scale it is as wide as what is drawn."""

    name: str
    log: bool = False
    form: Form = plain
    scale: Scale | None = None
    ticks: Sequence[float] | None = None
    names: dict[float, str] | None = None  # of ticks that are no numbers


@dataclass(frozen=True)
class Mark:
    """An upright line with a word beside it."""

    x: float
    text: str
    colour: int | None = None


@dataclass(frozen=True)
class Plot:
    """`about` is what a reader has to know of it, below the plot."""

    name: str  # of its element in the page
    title: str
    x: Axis
    y: Axis
    layers: tuple[Layer, ...]
    marks: tuple[Mark, ...] = ()
    about: str = ""
    kind: str = ""  # measured, simulated, published
    left: int = LEFT  # room for the names of the upright axis
    legend: tuple[tuple[str, int, bool, str], ...] = field(init=False)

    def __post_init__(self) -> None:
        named = [layer for layer in self.layers if layer.label]
        entries = tuple((e.label, e.colour, e.dashed, _shape(e)) for e in named)
        entries = tuple(dict.fromkeys(entries))
        object.__setattr__(self, "legend", entries if len(entries) > 1 else ())

    def svg(self) -> str:
        """The drawing; title and axes are also what a screen reader reads."""
        x = _scale(self.x, [v for layer in self.layers for v in layer.xs()])
        y = _scale(self.y, [v for layer in self.layers for v in layer.ys()])

        def place(at_x: float, at_y: float) -> Point:
            return (
                self.left + (WIDTH - self.left - RIGHT) * min(max(x.at(at_x), 0.0), 1.0),
                HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(max(y.at(at_y), 0.0), 1.0),
            )

        said = escape(f"{self.title}: {self.y.name} over {self.x.name}")
        return "".join(
            [
                f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">',
                _upright(self.x, x, self.left),
                _level(self.y, y, self.left),
                *(layer.draw(place) for layer in self.layers),
                *(_mark(m, place(m.x, y.low)[0], row) for row, m in enumerate(self.marks)),
                "</svg>",
            ]
        )


def _shape(layer: Layer) -> str:
    if isinstance(layer, Band):
        return "band"
    return "bar" if isinstance(layer, Bars) else "line"


def _scale(axis: Axis, values: list[float]) -> Scale:
    if axis.scale is not None:
        return axis.scale
    return logarithmic(values) if axis.log else linear(values)


def _ticks(axis: Axis, scale: Scale, wanted: int) -> Sequence[float]:
    if axis.ticks is not None:
        return [tick for tick in axis.ticks if -1e-9 <= scale.at(tick) <= 1 + 1e-9]
    return scale.ticks(wanted)


def _named(axis: Axis, value: float) -> str:
    return escape(axis.form(value) if axis.names is None else axis.names.get(value, ""))


def _upright(axis: Axis, scale: Scale, left: int) -> str:
    """The horizontal axis, and the upright lines of its ticks."""
    width, floor = WIDTH - left - RIGHT, HEIGHT - BOTTOM
    drawn = [f'<line class="axis" x1="{left}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>']
    for tick in _ticks(axis, scale, 7):
        at = f"{left + width * scale.at(tick):.1f}"
        if axis.names is None:
            drawn.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{TOP}" y2="{floor}"/>')
        text = _named(axis, tick)
        drawn.append(f'<text x="{at}" y="{floor + 17}" text-anchor="middle">{text}</text>')
    middle = left + width / 2
    drawn.append(
        f'<text class="axis-name" x="{middle:.1f}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(axis.name)}</text>"
    )
    return "".join(drawn)


def _level(axis: Axis, scale: Scale, left: int) -> str:
    """The upright axis; its name lies above it, where it can be read without a turned head."""
    height, drawn = HEIGHT - TOP - BOTTOM, []
    for tick in _ticks(axis, scale, 5):
        at = f"{HEIGHT - BOTTOM - height * scale.at(tick):.1f}"
        drawn.append(
            f'<line class="grid" x1="{left}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>'
            f'<text x="{left - 8}" y="{at}" dy="0.35em" text-anchor="end">'
            f"{_named(axis, tick)}</text>"
        )
    drawn.append(f'<text class="axis-name" x="4" y="11">{escape(axis.name)}</text>')
    return "".join(drawn)


def _mark(mark: Mark, x: float, row: int) -> str:
    """The word stands on the side where there is room, each in a row of its own."""
    right = x < WIDTH * 0.62
    shift, anchor = (5, "start") if right else (-5, "end")
    kind = "rule" if mark.colour is None else f"rule c{mark.colour}"
    return (
        f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="said" x="{x + shift:.1f}" y="{TOP + 11 + 14 * row}" text-anchor="{anchor}">'
        f"{escape(mark.text)}</text>"
    )


__all__ = ["Axis", "Band", "Bars", "Line", "Mark", "Plot", "Scale", "percent", "plain"]
