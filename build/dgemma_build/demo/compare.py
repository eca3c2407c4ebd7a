"""What each precision costs: `python -m dgemma_build.demo.compare --engine A --engine B ...`.

Knows how to set engines of one checkpoint against the first of them, task by task; the tasks and
the answers are `evaluate`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import mean, variance
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from dgemma.assemble import assemble
from dgemma.engine.onnx_engine import OnnxEngine
from dgemma.errors import DgemmaError
from dgemma.manifest import Manifest
from dgemma.store_manifest import FILE_NAME, StoreManifest
from dgemma_build.demo.evaluate import SEED, SLOTS, answers
from dgemma_build.demo.prompts import sudokus

BLANKS = (30, 45)
HEADINGS = (
    "precision",
    "weights, MB",
    "blanks",
    "right",
    "points",
    "steps / canvas",
    "steps",
    "passes run again",
)
Z95 = 1.96


@dataclass(frozen=True)
class Outcome:
    """What an engine made of the same tasks as every other; lists are in their order."""

    right: tuple[bool, ...]
    steps: tuple[float, ...]  # denoise steps per canvas
    passes: int
    reruns: int  # passes that overflowed an expert and were run a second time


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences and the half-width of its 95 % interval."""

    mean: float
    margin: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Difference:
        pairs = [our - their for our, their in zip(ours, theirs, strict=True)]
        spread = variance(pairs) if len(pairs) > 1 else 0.0
        return cls(mean(pairs), Z95 * sqrt(spread / len(pairs)))


def outcome(
    engine: Path, checkpoint: Path, blanks: int, count: int, threads: int, seed: int = SEED
) -> Outcome:
    """Ask an engine for `count` Sudokus; raises ConfigurationError where it cannot be loaded."""
    parts = assemble(engine, checkpoint, slots=SLOTS, threads=threads)
    tasks = sudokus(count, blanks, seed)
    given = answers(parts, f"{engine.name}, {blanks} blanks", tasks)
    ran = parts.scheduler.engine
    return Outcome(
        tuple(task.is_right(answer.text) for task, answer in zip(tasks, given, strict=True)),
        tuple(mean(answer.denoising_steps) for answer in given),
        parts.scheduler.passes,
        ran.reruns if isinstance(ran, OnnxEngine) else 0,
    )


def weights_size(engine: Path) -> int:
    """Bytes of the weight store beside an engine; without one, of the engine's own weights."""
    store = engine.with_name(engine.name + ".store")
    if (store / FILE_NAME).exists():
        return StoreManifest.read(store).size
    manifest = Manifest.read(engine)
    return sum(manifest.files[name].size for name in manifest.weights)


def cells(ours: Outcome, first: Outcome | None) -> tuple[str, ...]:
    """From `right` on; what is compared with `first` is empty where there is none."""
    points = steps = ""
    if first is not None:
        shares = Difference.of(ours.right, first.right)
        points = f"{100 * shares.mean:+.1f} ± {100 * shares.margin:.1f}"
        longer, usual = Difference.of(ours.steps, first.steps), mean(first.steps)
        steps = f"{longer.mean / usual:+.1%} ± {longer.margin / usual:.1%}"
    return (
        f"{mean(ours.right):.1%}",
        points,
        f"{mean(ours.steps):.2f}",
        steps,
        f"{ours.reruns / ours.passes:.1%}",
    )


def lines(
    engines: Sequence[Path], checkpoint: Path, count: int, threads: int, seed: int = SEED
) -> Iterator[tuple[str, ...]]:
    """A line of the table for each engine and number of blanks."""
    for engine in engines:
        Manifest.read(engine)  # refused before hours of answers to others
    first: dict[int, Outcome] = {}
    for engine in engines:
        head = (Manifest.read(engine).precision, f"{weights_size(engine) / 1e6:.2f}")
        for blanks in BLANKS:
            ours = outcome(engine, checkpoint, blanks, count, threads, seed)
            yield *head, str(blanks), *cells(ours, first.get(blanks))
            first.setdefault(blanks, ours)


def main(
    engine: Annotated[
        list[Path], typer.Option(help="Engine directories; the first is the measure.")
    ],
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint directory.")] = Path("build/demo"),
    count: Annotated[int, typer.Option(help="Tasks per line.", min=1)] = 500,
    threads: Annotated[int, typer.Option(help="Cores to use; 0: all.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Another one draws other Sudokus.", min=0)] = SEED,
) -> None:
    """Print the table of what each engine makes of the same Sudokus."""
    table = Table(*HEADINGS, box=SIMPLE)
    for column in table.columns[1:]:
        column.justify = "right"
    try:
        for line in lines(engine, checkpoint, count, threads, seed):
            table.add_row(*line)
    except DgemmaError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    Console(width=110).print(table)


if __name__ == "__main__":
    typer.run(main)
