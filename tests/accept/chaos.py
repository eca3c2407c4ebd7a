"""Faults under load: what is promised while something breaks and afterwards, as lines of one table.

Knows which lines there are and how many rounds each takes; the real service, supervisor included,
runs the demo checkpoint on the `cpu` engine.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tests.accept.chaos_disks import full_disk, full_shared_memory
from tests.accept.chaos_faults import kills
from tests.accept.chaos_leavers import leavers
from tests.accept.chaos_mounts import enter_namespace
from tests.accept.chaos_unread import unread
from tests.accept.parts import Part, report


class Name(StrEnum):
    """The parts of the table."""

    KILLS = "kills"
    DISK = "disk"
    SHARED_MEMORY = "shared-memory"
    CANCELS = "cancels"
    UNREAD = "unread"


# What each runs, and how many rounds of it.
PARTS: dict[Name, tuple[Part, int]] = {
    Name.KILLS: (kills, 1),
    Name.DISK: (full_disk, 1),
    Name.SHARED_MEMORY: (full_shared_memory, 1),
    Name.CANCELS: (leavers, 2000),
    Name.UNREAD: (unread, 4),
}


def main(
    engine: Annotated[Path, typer.Option(help="Engine directory.")],
    checkpoint: Annotated[Path, typer.Option(help="Its checkpoint directory.")],
    only: Annotated[list[Name] | None, typer.Option(help="Parts to run; repeatable.")] = None,
    share: Annotated[
        float, typer.Option(help="Of the rounds of each part.", min=0.001, max=100.0)
    ] = 1.0,
) -> None:
    """Print the table; five minutes. The exit code is 1 where a promise does not hold."""
    enter_namespace()  # before there are threads
    report((PARTS[name] for name in only or PARTS), engine, checkpoint, share, "faults under load")


if __name__ == "__main__":
    typer.run(main)
