"""Many users at once: what is promised of one engine that they share, each as a line of one table.

Knows which lines there are and how many rounds each takes; the real `cpu` engine runs the demo
checkpoint. What needs the speed of a GPU is asked of the simulated engine elsewhere.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tests.accept.leaving import leaving
from tests.accept.parts import Part, report
from tests.accept.reuse import closeness
from tests.accept.same_answers import identity
from tests.accept.second_turn import second_turn
from tests.accept.sixteen import sixteen
from tests.accept.storm import in_process
from tests.accept.storm_served import through_triton


class Name(StrEnum):
    """The parts of the table."""

    IDENTITY = "identity"
    REUSE = "reuse"
    CHAT = "chat"
    LEAVING = "leaving"
    STORM = "storm"
    SERVED_STORM = "served-storm"
    SPEED = "speed"


# What each runs, and how many rounds of it.
PARTS: dict[Name, tuple[Part, int]] = {
    Name.SPEED: (sixteen, 5),
    Name.IDENTITY: (identity, 300),
    Name.REUSE: (closeness, 300),
    Name.CHAT: (second_turn, 60),
    Name.LEAVING: (leaving, 20),
    Name.STORM: (in_process, 10_000),
    Name.SERVED_STORM: (through_triton, 500),
}


def main(
    engine: Annotated[Path, typer.Option(help="Engine directory.")],
    checkpoint: Annotated[Path, typer.Option(help="Its checkpoint directory.")],
    only: Annotated[list[Name] | None, typer.Option(help="Parts to run; repeatable.")] = None,
    share: Annotated[
        float, typer.Option(help="Of the rounds of each part.", min=0.001, max=1.0)
    ] = 1.0,
) -> None:
    """Print the table; half an hour. The exit code is 1 where a promise does not hold."""
    report((PARTS[name] for name in only or PARTS), engine, checkpoint, share, "many users at once")


if __name__ == "__main__":
    typer.run(main)
