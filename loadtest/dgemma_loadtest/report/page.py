"""A page of figures: sections with words, tables and plots, in one file that needs no other.

Knows how it looks, by light and by dark; knows nothing of what the figures are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from dgemma_loadtest.report.svg.plot import Plot

_HERE = Path(__file__).parent
MEANINGS = {
    "measured": "measured: with real passes of the network, by the clock of the client",
    "simulated": "simulated: nothing was computed; passes take the time that a model says",
    "published": "published: somebody else's figure for other software, with its source",
    "unknown": "unknown: the server does not say whether it simulates",
}


@dataclass(frozen=True)
class Cell:
    """`kind` gives it a badge; `note` is said below it, smaller."""

    text: str
    note: str = ""
    kind: str = ""
    bad: bool = False


@dataclass(frozen=True)
class Table:
    """The first column is of words, the others of figures unless `words` says otherwise."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    caption: str = ""
    words: bool = False

    def cells(self) -> list[list[Cell]]:
        return [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in self.rows]


@dataclass(frozen=True)
class Section:
    title: str
    words: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()

    def __bool__(self) -> bool:
        return bool(self.words or self.tables or self.plots)


@dataclass(frozen=True)
class Notice:
    """What has to be read first."""

    text: str
    bad: bool = False


@dataclass(frozen=True)
class Page:
    title: str
    subtitle: str
    kinds: Sequence[str]
    notices: Sequence[Notice]
    sections: Sequence[Section]
    foot: Sequence[str] = ()

    def html(self) -> str:
        return _template().render(page=self, meanings=MEANINGS, style=_style())


def write(page: Page, path: Path) -> None:
    """Replaces the file at once."""
    scratch = path.with_name(f".{path.name}")
    scratch.write_text(page.html(), encoding="utf-8")
    scratch.replace(path)


@lru_cache(1)
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


@lru_cache(1)
def _style() -> str:
    return (_HERE / "page.css").read_text(encoding="utf-8")
