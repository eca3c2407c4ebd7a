"""`dgemma-build quantize`: options, progress bars and what is said at the end."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from dgemma.errors import DgemmaError
from dgemma_build.quantize.run import Quantized, quantize_checkpoint
from dgemma_build.quantize.source import ORIGIN

INTERRUPTED = 130  # what a shell reports of a program that Ctrl-C ended

console = Console(stderr=True)


def quantize(
    checkpoint: Annotated[Path, typer.Option(help="Hugging Face checkpoint directory.")],
    precision: Annotated[str, typer.Option(help="fp8, int4, nvfp4 or bf16.")],
    out: Annotated[Path, typer.Option(help="Weight store directory to write.")],
    policy: Annotated[
        str | None,
        typer.Option(
            help="experts, feed_forward or all linear layers; if not the precision's own."
        ),
    ] = None,
) -> None:
    """Write the weights of a checkpoint in one precision; what is quantised already is taken over.

    Does nothing where the store is up to date, and goes on where an earlier run was interrupted.
    """
    try:
        with _bars() as bars:
            done = quantize_checkpoint(checkpoint, precision, out, policy, _Tasks(bars))
    except DgemmaError as error:
        console.print("error:", style="red", end=" ")
        _say(str(error))
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        _say("interrupted; run the same command again to go on from here")
        raise typer.Exit(INTERRUPTED) from None
    _say(f"{out}: {precision} store {_summary(done)}")


def _bars() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    return Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console)


class _Tasks:
    """A bar for each thing that makes progress."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(what, total=total)
        self.bars.update(self.tasks[what], completed=done)


def _summary(done: Quantized) -> str:
    manifest = done.manifest
    if done.up_to_date:
        return "is up to date"
    counts = Counter(manifest.policy.format_of(name).name for name in manifest.parameters)
    formats = ", ".join(f"{count} parameters in {name}" for name, count in sorted(counts.items()))
    taken_over = "" if manifest.origin == ORIGIN else f", taken over from {manifest.origin}"
    return f"written: {decimal(manifest.size)}, {formats}{taken_over}"


def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
