"""`dgemma-build`: the command line of the builder.

Knows options and progress bars; every decision is made in the modules it calls.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dgemma.errors import DgemmaError
from dgemma.geometries import named_geometry
from dgemma.precision import policy_of
from dgemma_build import cli_targets
from dgemma_build.engine import (
    build_constant_plan,
    build_engine,
    build_from_store,
    build_plan,
)
from dgemma_build.ensure.command import ensure
from dgemma_build.kernels.command import kernels
from dgemma_build.progress import shown
from dgemma_build.quantize.command import quantize
from dgemma_build.verify.command import verify

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(quantize)
app.command()(verify)
app.command()(ensure)
app.command()(kernels)
console = Console(stderr=True)
cli_targets.register(app)


@app.callback()
def main() -> None:
    """Turns a DiffusionGemma checkpoint into engines."""


@app.command()
def engine(
    out: Annotated[Path, typer.Option(help="Engine directory to write.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Hugging Face checkpoint directory, or …")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="… a weight store that `quantize` wrote.")
    ] = None,
    geometry: Annotated[
        str | None, typer.Option(help="… or, for GPUs, a named geometry: they need no weights.")
    ] = None,
    target: Annotated[
        str, typer.Option(help="What to compile for; gpu: any GPU, compiled where it runs.")
    ] = "cpu",
    precision: Annotated[
        str | None,
        typer.Option(help="Precision of the weights; fp32 without it, or the store's."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="What is quantised, if not the default: experts, feed_forward or all."),
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option(min=2, max=64, help="Rows of a pass, two a slot; GPUs only.")
    ] = None,
    max_context: Annotated[
        int | None, typer.Option(min=1, help="Tokens that a slot can hold; GPUs only.")
    ] = None,
    weights_as_constants: Annotated[
        bool,
        typer.Option(
            "--weights-as-constants",
            help="Put the weights of --checkpoint or --store into the plan; GPUs only.",
        ),
    ] = False,
    targets: cli_targets.TargetsOption = None,
) -> None:
    """Write graph, weights and manifest; does nothing where they are up to date.

    From a checkpoint, a precision other than fp32 goes by way of a weight store beside the engine.
    """
    if sum(source is not None for source in (checkpoint, store, geometry)) != 1:
        raise typer.BadParameter("name one of --checkpoint, --store and --geometry")
    if geometry is not None and weights_as_constants:
        raise typer.BadParameter("--weights-as-constants goes with --checkpoint or --store")
    of_a_plan = geometry is not None or store is not None or weights_as_constants
    if not of_a_plan and (max_rows, max_context) != (None, None):
        raise typer.BadParameter(
            "--max-rows and --max-context go with --geometry, --store or --weights-as-constants"
        )
    if policy is not None and store is not None:
        raise typer.BadParameter(
            "--policy goes with --checkpoint and --geometry; a store has its own"
        )
    try:
        with shown(console) as progress:
            if weights_as_constants:
                built = build_constant_plan(
                    checkpoint,
                    store,
                    target,
                    precision,
                    out,
                    progress,
                    policy=policy,
                    max_rows=max_rows,
                    max_context=max_context,
                    targets=targets,
                )
            elif checkpoint is not None:
                built = build_engine(
                    checkpoint,
                    target,
                    precision or "fp32",
                    out,
                    progress,
                    policy=policy,
                    targets=targets,
                )
            elif store is not None:
                built = build_from_store(
                    store,
                    target,
                    precision,
                    out,
                    progress,
                    max_rows=max_rows,
                    max_context=max_context,
                    targets=targets,
                )
            elif geometry is not None:
                built = build_plan(
                    named_geometry(geometry),
                    target,
                    precision or "bf16",
                    out,
                    progress,
                    max_rows=max_rows,
                    max_context=max_context,
                    policy=policy_of(precision or "bf16", policy),
                    targets=targets,
                )
    except DgemmaError as error:
        console.print("error:", style="red", end=" ")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    state = "is up to date" if built.up_to_date else "built"
    line = f"{out}: {target} {built.manifest.precision} engine {state}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
