"""`python -m dgemma.bench`: measures engines on this machine's GPU.

Knows options, tables and exit codes; what is measured, and how, lives in the modules beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from dgemma import geometries
from dgemma.bench.ceilings import ceilings
from dgemma.bench.gpu import Subject, measure
from dgemma.bench.stand import Plan
from dgemma.bench.tables import tables
from dgemma.engine.device import CudaDevice, HostDevice
from dgemma.errors import ConfigurationError, DgemmaError
from dgemma.geometry import Geometry
from dgemma.precision import policy_of

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
BAD_INPUT = 2
_WIDE = 160  # columns, where nobody watches


@app.callback()
def main() -> None:
    """Measures engines."""


@app.command()
def gpu(
    config: Annotated[
        Path | None, typer.Option(help="Directory of a config.json; without it the published one.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="One, or several; fp8 and bf16 without it.")
    ] = None,
    rows: Annotated[
        list[int] | None, typer.Option(min=1, max=32, help="Canvases at once; 1, 2, 4, 8, 16.")
    ] = None,
    context: Annotated[
        list[int] | None, typer.Option(min=1, help="Tokens before a canvas; 2048 and 32768.")
    ] = None,
    steps: Annotated[
        list[int] | None, typer.Option(min=1, help="Denoise steps of a canvas; 16, 27, 48.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Of which a median is taken.")] = 10,
    peer_steps: Annotated[
        int, typer.Option(min=0, help="Steps of Hugging Face's generate; 0 leaves it out.")
    ] = 8,
    host: Annotated[
        bool, typer.Option("--host", help="On this host's cores, in plain torch: a rehearsal.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Directory for a report per precision, gpu-NAME.json.")
    ] = None,
) -> None:
    """Time passes of the torch engine, on random weights made on the GPU.

    Hugging Face's run is beside the first precision.
    """
    told = Console(stderr=True)
    shown = Console() if Console().is_terminal else Console(width=_WIDE)
    try:
        where = HostDevice() if host else CudaDevice()
        directory = config or geometries.directory_of(geometries.DEFAULT)
        geometry = Geometry.from_checkpoint(directory)
        plan = Plan(
            tuple(rows or Plan.rows),
            tuple(context or Plan.contexts),
            tuple(steps or Plan.steps),
            runs,
        )
        wanted = precision or ["fp8", "bf16"]
        for name in wanted:
            policy_of(name)
        most = max(plan.contexts) + 2 * geometry.canvas_length
        if most > geometry.max_position_embeddings:
            raise ConfigurationError(
                f"--context: {max(plan.contexts)} and two canvases are {most} tokens, the model "
                f"has {geometry.max_position_embeddings}"
            )
        with told.status("ceilings …") as status:
            size = (2**24, 256) if host else (2**32, 8192)
            found = ceilings(torch.device(where.where), *size)
            reports = []
            for index, name in enumerate(wanted):
                subject = Subject(directory, geometry, name, 0 if index else peer_steps)
                reports.append(measure(subject, plan, where, found, status.update))
                if out is not None:
                    out.mkdir(parents=True, exist_ok=True)
                    reports[-1].write(out / f"gpu-{name}.json")
    except DgemmaError as error:
        told.print("error:", style="red", end=" ")
        told.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(BAD_INPUT) from None
    for table in tables(reports):
        shown.print(table)


if __name__ == "__main__":
    app()
