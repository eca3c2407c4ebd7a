"""Prints what the demo checkpoint can do: `python -m dgemma_build.demo.evaluate`.

Knows the test sets and the table; the answers come from the same scheduler, tail and engine that
serve requests.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dgemma.assemble import Parts, assemble
from dgemma.errors import DgemmaError
from dgemma.request import RawRequest
from dgemma.scheduler.events import Block, Event, Finished
from dgemma_build.demo.prompts import Task, counts, sudokus

# Other than any seed of the training set, whose grids are drawn with integer seeds.
SEED = 20_261_123
SLOTS = 8


@dataclass(frozen=True)
class Answer:
    """What one request gave."""

    text: str
    denoising_steps: tuple[int, ...]
    passes: int


@dataclass(frozen=True)
class Score:
    """One line of the table."""

    name: str
    tasks: int
    solved: float  # share
    steps: float  # mean denoise steps per canvas
    canvases: float  # mean per answer
    passes: float  # mean per answer


def ask(parts: Parts, tasks: Sequence[Task], seed: int = 1) -> list[Answer]:
    """Run the tasks, `SLOTS` at a time, with the checkpoint's own settings."""
    heard: list[list[Event]] = [[] for _ in tasks]
    for index, task in enumerate(tasks):
        raw = RawRequest(
            messages=json.dumps([{"role": "user", "content": task.prompt}]).encode(),
            canvas_template=task.template.encode() if task.template else None,
            sampling_parameters=json.dumps({"seed": seed + index}).encode(),
        )
        request = parts.parser.parse(raw, str(index))
        parts.scheduler.submit(request, heard[index].append)
    while parts.scheduler.step():
        pass
    return [_answer(events) for events in heard]


def _answer(events: list[Event]) -> Answer:
    last = events[-1]
    assert isinstance(last, Finished), "every request ends"
    if last.error is not None:
        raise last.error
    text = "".join(event.delta.text for event in events if isinstance(event, Block))
    return Answer(text, last.usage.denoising_steps, last.usage.passes)


def answers(parts: Parts, name: str, tasks: Sequence[Task], batch: int = 100) -> list[Answer]:
    """`ask` in batches, with a progress bar; a task's seed is its place in the list."""
    starts = range(0, len(tasks), batch)
    return [
        answer
        for start in track(starts, f"{name:<28}", console=Console(stderr=True), transient=True)
        for answer in ask(parts, tasks[start : start + batch], seed=start + 1)
    ]


def score(parts: Parts, name: str, tasks: Sequence[Task]) -> Score:
    given = answers(parts, name, tasks)
    right = [task.is_right(answer.text) for task, answer in zip(tasks, given, strict=True)]
    steps = [step for answer in given for step in answer.denoising_steps]
    return Score(
        name,
        len(tasks),
        mean(right),
        mean(steps),
        mean(len(answer.denoising_steps) for answer in given),
        mean(answer.passes for answer in given),
    )


def evaluate(parts: Parts, count: int) -> list[Score]:
    """Every skill on `count` tasks that training never saw."""
    return [
        score(parts, "Sudoku, 30 blanks", sudokus(count, 30, SEED)),
        score(parts, "Sudoku, 45 blanks", sudokus(count, 45, SEED)),
        score(parts, "Sudoku, 30 blanks, on the grid", sudokus(count, 30, SEED, on_grid=True)),
        score(parts, "Sudoku, 45 blanks, on the grid", sudokus(count, 45, SEED, on_grid=True)),
        score(parts, "count from A", counts(count, SEED)),
    ]


def table(scores: Sequence[Score]) -> Table:
    result = Table(box=SIMPLE)
    for heading in ("skill", "tasks", "right", "steps / canvas", "canvases", "passes / answer"):
        result.add_column(heading, justify="left" if heading == "skill" else "right")
    for s in scores:
        result.add_row(
            s.name,
            str(s.tasks),
            f"{s.solved:.1%}",
            f"{s.steps:.1f}",
            f"{s.canvases:.1f}",
            f"{s.passes:.1f}",
        )
    return result


def main(
    engine: Annotated[Path, typer.Option(help="Engine directory.")],
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint directory.")] = Path("build/demo"),
    count: Annotated[int, typer.Option(help="Tasks per line.", min=1)] = 500,
    threads: Annotated[int, typer.Option(help="Cores to use; 0: all.", min=0)] = 0,
) -> None:
    """Print the table of what the checkpoint can do."""
    try:
        parts = assemble(engine, checkpoint, slots=SLOTS, threads=threads)
        Console(width=100).print(table(evaluate(parts, count)))
    except DgemmaError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)
