"""The parts of a table of promises, run one after another.

Knows how lines are shown while they come and as a table at the end; knows nothing of what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import typer
from rich.console import Console

from tests.accept.main_job import Line, table
from tests.bench.__main__ import WIDTH

Part = Callable[[Path, Path, int], Iterator[Line]]  # of an engine, a checkpoint and so many rounds


def report(
    parts: Iterable[tuple[Part, int]], engine: Path, checkpoint: Path, share: float, title: str
) -> None:
    """Run `share` of each part's rounds and print; exit with 1 where a promise does not hold."""
    engine, checkpoint = engine.resolve(), checkpoint.resolve()
    progress = Console(stderr=True)
    lines: list[Line] = []
    for run, rounds in parts:
        for line in run(engine, checkpoint, max(1, round(rounds * share))):
            progress.print(f"{line.what}: {line.seen}", highlight=False, markup=False)
            lines.append(line)
    Console(width=WIDTH).print(table(lines, title))
    raise typer.Exit(int(any(line.holds is False for line in lines)))
