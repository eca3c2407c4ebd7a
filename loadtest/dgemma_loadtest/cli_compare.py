"""`dgemma-loadtest compare`: two runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as Shown

from dgemma_loadtest import recording, run_file
from dgemma_loadtest.compare import METHOD, Difference, compare
from dgemma_loadtest.errors import InputError
from dgemma_loadtest.metrics.summary import Summary, summarise
from dgemma_loadtest.report.page import Cell, Notice, Page, Section, Table, write
from dgemma_loadtest.report.words import MISSING, number, seconds

WIDTH = 120
_COLUMNS = ("stage", "figure", "A", "B", "B over A", "p", "verdict")


def compare_(
    a: Annotated[Path, typer.Argument(help="Directory of a run.")],
    b: Annotated[Path, typer.Argument(help="Directory of another one.")],
    out: Annotated[Path | None, typer.Option(help="Write a page, too: a file of HTML.")] = None,
) -> None:
    """Say which differences between two runs exceed the noise.

    The exit code is 0 whatever the differences are.
    """
    records, summaries = zip(*(_read(path) for path in (a, b)), strict=True)
    found = compare(*records)
    if not found:
        raise InputError(f"{a} and {b} have no stage with the same name and requests in both")
    rows, warnings = [_row(one) for one in found], _warnings(summaries)
    console = Console(width=None if Console().is_terminal else WIDTH)
    shown = Shown(title=f"A: {a}\nB: {b}", caption=METHOD, box=SIMPLE, title_justify="left")
    for k, name in enumerate(_COLUMNS):
        shown.add_column(name, justify="left" if k < 2 else "right")
    for row in rows:
        shown.add_row(*(cell.text for cell in row))
    console.print(shown)
    for text in warnings:
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    if out is not None:
        write(_page(a, b, rows, warnings, summaries), out)
        console.print(str(out), highlight=False, markup=False, soft_wrap=True)


def _read(path: Path) -> tuple[list[object], Summary]:
    records = recording.read(path)
    return list(records), summarise(run_file.read(path), records)


def _row(one: Difference) -> list[Cell]:
    ratio = MISSING if one.ratio is None else f"{one.ratio.value:.3f}"
    if one.ratio is not None and one.ratio.low is not None and one.ratio.high is not None:
        ratio += f" ({one.ratio.low:.3f} to {one.ratio.high:.3f})"
    verdict = {True: "differs", False: "noise", None: "too few"}[one.differs]
    return [
        *map(Cell, (one.stage, one.what, _value(one.a, one.unit), _value(one.b, one.unit), ratio)),
        Cell(MISSING if one.p is None else f"{one.p:.4f}"),
        Cell(verdict, bad=one.differs is True),
    ]


def _value(value: float, unit: str) -> str:
    return seconds(value) if unit == "s" else number(value)


def _warnings(summaries: Sequence[Summary]) -> list[str]:
    said = [
        f"{name} is spoiled: {reason}"
        for name, summary in zip("AB", summaries, strict=True)
        for reason in summary.overhead.reasons
    ]
    kinds = [summary.kind for summary in summaries]
    if kinds[0] != kinds[1]:
        said.append(f"A is {kinds[0]} and B is {kinds[1]}: what is compared is not the same")
    if summaries[0].scenario != summaries[1].scenario:
        said.append("the scenarios differ in name")
    return said


def _page(
    a: Path,
    b: Path,
    rows: list[list[Cell]],
    warnings: list[str],
    summaries: Sequence[Summary],
) -> Page:
    return Page(
        "Two runs side by side",
        f"A: {a.name}, {summaries[0].target}; B: {b.name}, {summaries[1].target}",
        sorted({summary.kind for summary in summaries}),
        [Notice(text, True) for text in warnings],
        [Section("Differences", tables=[Table(_COLUMNS, rows)])],
        (METHOD,),
    )
