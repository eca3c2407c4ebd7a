"""The surface of the whole service: what anybody may send it, and what it says to nobody.

Knows which lines there are and how many rounds each takes; the demo checkpoint is served by the
real `cpu` engine, and everything is asked from outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tests.accept.canary import canary
from tests.accept.contract import contract
from tests.accept.fuzz import fuzz
from tests.accept.main_job import Line
from tests.accept.parts import Part, report
from tests.accept.soak import soak
from tests.bench.front import PROMISED_MS, STREAMS, added_ms


class Name(StrEnum):
    """The parts of the table."""

    CONTRACT = "contract"
    CANARY = "canary"
    OVERHEAD = "overhead"
    FUZZ = "fuzz"
    SOAK = "soak"


def overhead(engine: Path, checkpoint: Path, turns: int) -> Iterator[Line]:
    """What the front adds to a block; no model is asked."""
    added = sorted(added_ms() for _ in range(turns))
    middle = added[len(added) // 2]
    yield Line(
        f"added to a block by the front, {STREAMS} streams",
        f"{middle:.2f} ms ({added[0]:.2f} to {added[-1]:.2f})",
        f"<= {PROMISED_MS:g} ms",
        middle <= PROMISED_MS,
    )


# What each runs, and how many rounds of it.
PARTS: dict[Name, tuple[Part, int]] = {
    Name.CONTRACT: (contract, 40),
    Name.CANARY: (canary, 20),
    Name.OVERHEAD: (overhead, 3),
    Name.FUZZ: (fuzz, 20_000),
    Name.SOAK: (soak, 30),
}
UNLESS_ASKED = [name for name in PARTS if name is not Name.SOAK]


def main(
    engine: Annotated[Path, typer.Option(help="Engine directory.")],
    checkpoint: Annotated[Path, typer.Option(help="Its checkpoint directory.")],
    only: Annotated[
        list[Name] | None, typer.Option(help="Parts to run; repeatable. The soak runs only so.")
    ] = None,
    share: Annotated[
        float, typer.Option(help="Of the rounds of each part.", min=0.001, max=1.0)
    ] = 1.0,
    minutes: Annotated[int, typer.Option(help="Of the soak, before `share`.", min=1)] = 30,
) -> None:
    """Print the table; ten minutes. The exit code is 1 where a promise does not hold."""
    parts = PARTS | {Name.SOAK: (soak, minutes)}
    chosen = (parts[name] for name in only or UNLESS_ASKED)
    report(chosen, engine, checkpoint, share, "the surface")


if __name__ == "__main__":
    typer.run(main)
