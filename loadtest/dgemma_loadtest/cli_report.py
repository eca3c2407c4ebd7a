"""`dgemma-loadtest report`: the page of a run, once more."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dgemma_loadtest.report.gates import GOOD_SHARE
from dgemma_loadtest.report.run_page import report as written


def report(
    directory: Annotated[Path, typer.Argument(help="Of a run: what `run --out` was given.")],
    good_share: Annotated[
        float, typer.Option(help="Of the requests, that have to meet the SLO.", min=0, max=1)
    ] = GOOD_SHARE,
) -> None:
    """Write a run's report.html, junit.xml, summary.json and summary.csv anew.

    The exit code is 1 where a gate failed.
    """
    done, console = written(directory, good_share), Console()
    for gate in done.gates:
        where = f"{gate.stage}: " if gate.stage else ""
        said = f"{gate.outcome:7} {where}{gate.name}: {gate.said}"
        console.print(said, highlight=False, markup=False, soft_wrap=True)
    console.print(str(done.path), highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(int(done.failed))
