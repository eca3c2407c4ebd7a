"""The chart's `cpu-demo` as processes: what an operator is promised, as lines of one table.

Knows which lines there are; the real service runs behind every pod, with the probes' real periods.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tests.accept.chart_engines import builds
from tests.accept.chart_pods import one_pod
from tests.accept.chart_upgrades import recreate, rolling
from tests.accept.parts import Part, report


class Name(StrEnum):
    """The parts of the table."""

    ENGINES = "engines"
    POD = "pod"
    ROLLING = "rolling"
    RECREATE = "recreate"


# What each runs, and how many rounds of it.
PARTS: dict[Name, tuple[Part, int]] = {
    Name.ENGINES: (builds, 1),
    Name.POD: (one_pod, 1),
    Name.ROLLING: (rolling, 2),
    Name.RECREATE: (recreate, 2),
}


def main(
    engine: Annotated[Path, typer.Option(help="Engine directory.")],
    checkpoint: Annotated[Path, typer.Option(help="Its checkpoint directory.")],
    only: Annotated[list[Name] | None, typer.Option(help="Parts to run; repeatable.")] = None,
    share: Annotated[
        float, typer.Option(help="Of the rounds of each part.", min=0.001, max=100.0)
    ] = 1.0,
) -> None:
    """Print the table; ten minutes. The exit code is 1 where a promise does not hold."""
    title = "the chart's pods and engines"
    report((PARTS[name] for name in only or PARTS), engine, checkpoint, share, title)


if __name__ == "__main__":
    typer.run(main)
