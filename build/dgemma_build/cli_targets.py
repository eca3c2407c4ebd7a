"""`dgemma-build targets` and `dgemma-build estimate`.

Knows options and what goes to which stream; every decision is made in the modules it calls.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dgemma.errors import ConfigurationError, DgemmaError
from dgemma.geometries import DEFAULT, named_geometry
from dgemma.geometry import Geometry
from dgemma.targets import load_targets, select
from dgemma_build import rendering
from dgemma_build.buildable import HERE, why_not
from dgemma_build.estimate import CONTEXT, STEPS, Question, consumer_bar, estimates

WIDE = 200  # columns, where nobody watches and a file or a pipe takes them all

TargetsOption = Annotated[
    Path | None,
    typer.Option(
        "--targets",
        envvar="DGEMMA_TARGETS",
        help="Directory of further target files, NAME.toml; one replaces a shipped namesake.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    app.command("targets")(show_targets)
    app.command("estimate")(show_estimate)


def show_targets(extra: TargetsOption = None, as_json: JsonOption = False) -> None:
    """List what engines are compiled for, and whether this machine can."""
    with _one_sentence():
        targets = load_targets(extra)
        reasons = {name: why_not(target, HERE) for name, target in targets.items()}
        listed = list(targets.values())
        if as_json:
            typer.echo(json.dumps(rendering.targets_json(listed, reasons), indent=1))
            return
        _stdout().print(rendering.targets_table(listed, reasons))


def show_estimate(
    target: Annotated[
        str | None, typer.Option(help="Only this target; gpu is shown only where it is named.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="Only this precision.")] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="What is quantised, if not the default: experts, feed_forward or all."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Hugging Face directory; only its config.json is read.")
    ] = None,
    geometry: Annotated[
        str | None, typer.Option(help=f"A geometry by name.  [default: {DEFAULT}]")
    ] = None,
    context: Annotated[
        int | None, typer.Option(help=f"Tokens of a slot.  [default: {CONTEXT}, or the model's]")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(help="Rows of a pass, two for each slot.  [default: 2]")
    ] = None,
    capacity: Annotated[
        int | None,
        typer.Option(help="Tokens that one expert may get.  [default: all of a pass, the worst]"),
    ] = None,
    steps: Annotated[
        str, typer.Option(help="Denoise steps per canvas, comma-separated.")
    ] = ",".join(map(str, STEPS)),
    extra: TargetsOption = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="List every buffer of every estimate.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what fits on each GPU, and how fast it can be at most."""
    with _one_sentence():
        targets = load_targets(extra)
        known = list(targets.values())
        # Every GPU has a target of its own; those for any GPU would list it once more.
        own = [t for t in known if t.has_plan or not t.on_gpu]
        chosen = own if target is None else [select(targets, target)]
        shape = _geometry(checkpoint, geometry)
        question = Question(
            shape,
            min(CONTEXT, shape.max_position_embeddings) if context is None else context,
            rows,
            _numbers(steps),
            policy,
            capacity,
        )
        found = estimates(chosen, question, precision, known)
        published = shape == named_geometry(DEFAULT) and precision in (None, "int4")
        published &= any(t in own for t in chosen)  # the bar is counted of a plan
        bar = consumer_bar(shape, capacity) if published else None
    if as_json:
        body = {
            "estimates": [rendering.estimate_json(e) for e in found],
            "consumer_bar": bar and rendering.bar_json(bar),
        }
        typer.echo(json.dumps(body, indent=1))
        return
    out = _stdout()
    out.print(rendering.memory_table(found))
    if bar is not None:
        out.print(rendering.bar_line(bar), highlight=False)
    if any(e.floor_ms is not None for e in found):
        out.print(rendering.speed_table(found))
        for note in rendering.SPEED_NOTES:
            out.print(note, style="dim", highlight=False)
    if verbose:
        for e in found:
            out.print(rendering.buffers_table(e))


def _geometry(checkpoint: Path | None, name: str | None) -> Geometry:
    if checkpoint is not None and name is not None:
        raise ConfigurationError("--checkpoint and --geometry exclude each other; give one")
    if checkpoint is not None:
        return Geometry.from_checkpoint(checkpoint)
    return named_geometry(DEFAULT if name is None else name)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigurationError(
            f"steps: got {text!r}; allowed: whole numbers with commas between them"
        ) from None


def _stdout() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=WIDE)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """A mistake of the user's is a sentence and exit code 2."""
    try:
        yield
    except DgemmaError as error:
        console = Console(stderr=True)
        console.print("error:", style="red", end=" ")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
