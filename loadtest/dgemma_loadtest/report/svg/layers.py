"""What can be drawn in a plot; each kind of layer turns places into SVG.

Knows shapes and the classes that the page's style colours; knows nothing of axes or titles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

Point = tuple[float, float]
Place = Callable[[float, float], Point]  # of x and y in the plot's units
SERIES = 6  # colours that the style has


@dataclass(frozen=True)
class Line:
    """Straight from point to point, or in stairs; points may be marked and say something."""

    points: Sequence[Point]
    label: str = ""
    colour: int = 0
    dashed: bool = False
    stairs: bool = False
    marks: bool = False
    say: Sequence[str] = ()  # of each point, where it is pointed at

    def xs(self) -> Iterable[float]:
        return (x for x, _ in self.points)

    def ys(self) -> Iterable[float]:
        return (y for _, y in self.points)

    def draw(self, place: Place) -> str:
        places = [place(x, y) for x, y in self.points]
        if not places:
            return ""
        path = f"M{_pair(places[0])}"
        for (_, before), (x, y) in pairwise(places):
            path += f"L{_number(x)} {_number(before)}" if self.stairs else ""
            path += f"L{_pair((x, y))}"
        kind = f"line c{self.colour % SERIES}" + (" dashed" if self.dashed else "")
        drawn = f'<path class="{kind}" d="{path}"/>'
        if self.marks:
            drawn += "".join(self._marks(places))
        return drawn

    def _marks(self, places: Sequence[Point]) -> Iterable[str]:
        for number, (x, y) in enumerate(places):
            said = f"<title>{escape(self.say[number])}</title>" if self.say else ""
            yield (
                f'<circle class="mark c{self.colour % SERIES}" cx="{_number(x)}" '
                f'cy="{_number(y)}" r="3.5">{said}</circle>'
            )


@dataclass(frozen=True)
class Band:
    """Between two curves over the same x: how sure something is."""

    points: Sequence[tuple[float, float, float]]  # x, low, high
    label: str = ""
    colour: int = 0
    dashed: bool = False

    def xs(self) -> Iterable[float]:
        return (x for x, _, _ in self.points)

    def ys(self) -> Iterable[float]:
        return (y for _, *pair in self.points for y in pair)

    def draw(self, place: Place) -> str:
        if not self.points:
            return ""
        there = [place(x, high) for x, _, high in self.points]
        back = [place(x, low) for x, low, _ in reversed(self.points)]
        path = "L".join(_pair(p) for p in (*there, *back))
        return f'<path class="band c{self.colour % SERIES}" d="M{path}Z"/>'


@dataclass(frozen=True)
class Bars:
    """Upright bars of one width, from `base` to their height."""

    bars: Sequence[tuple[float, float, float]]  # x of the middle, base, top
    width: float
    label: str = ""
    colour: int = 0
    dashed: bool = False
    say: Sequence[str] = ()

    def xs(self) -> Iterable[float]:
        for x, _, _ in self.bars:
            yield x - self.width / 2
            yield x + self.width / 2

    def ys(self) -> Iterable[float]:
        return (y for _, base, top in self.bars for y in (base, top))

    def draw(self, place: Place) -> str:
        return "".join(self._rectangles(place))

    def _rectangles(self, place: Place) -> Iterable[str]:
        for number, (x, base, top) in enumerate(self.bars):
            (left, upper), (right, lower) = (
                place(x - self.width / 2, top),
                place(x + self.width / 2, base),
            )
            said = f"<title>{escape(self.say[number])}</title>" if self.say else ""
            yield (
                f'<rect class="bar c{self.colour % SERIES}" x="{_number(left)}" '
                f'y="{_number(upper)}" width="{_number(right - left)}" '
                f'height="{_number(max(lower - upper, 0))}">{said}</rect>'
            )


Layer = Line | Band | Bars  # `xs` and `ys` are what the axes have to reach


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _pair(point: Point) -> str:
    return f"{_number(point[0])} {_number(point[1])}"
