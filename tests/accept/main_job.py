"""`make accept-1`: the slow promises of the main job, each as a line of one table.

Knows what is promised and how to ask for it; the work is done by the demo's evaluation, by the
identity check of the tests, by the benchmark and by a real server.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from dgemma.assemble import Parts, assemble
from dgemma.client import Client, RequestRejected
from dgemma.settings import Settings
from dgemma.triton_server import shared_memory
from dgemma.triton_server.processes import session_members
from dgemma.triton_server.server import TritonServer
from dgemma_build.demo.evaluate import evaluate
from tests.bench.__main__ import MODEL_REPOSITORY, WIDTH, measure
from tests.identity import keyed_by_row, mixes_differ

MIXES = 100
BAD_REQUESTS, LEAVERS = 500, 200
ENDLESS = {"max_denoising_steps": 1024, "confidence_threshold": 0.0, "ignore_eos": True}


@dataclass(frozen=True)
class Line:
    """One promise: what was seen, what was promised."""

    what: str
    seen: str
    promised: str
    holds: bool | None = None  # None: an aim, or for information


def quality(parts: Parts, count: int) -> Iterator[Line]:
    """The demo checkpoint's skills, on tasks that its training never saw."""
    promised = {"Sudoku, 30 blanks": 0.9, "count from A": 0.95}
    aims = {"Sudoku, 45 blanks": "aim: 80%"}
    for score in evaluate(parts, count):
        share = promised.get(score.name)
        seen = f"{score.solved:.1%} of {score.tasks}, {score.steps:.1f} steps a canvas"
        if share is None:
            yield Line(score.name, seen, aims.get(score.name, ""))
            continue
        holds = score.solved >= share
        text = f">= {share:.0%}"
        if "30" in score.name:
            holds, text = holds and score.steps <= 8, f"{text}, <= 8 steps"
        yield Line(score.name, seen, text, holds)


def identity(engine: Path, checkpoint: Path, mixes: int) -> Iterator[Line]:
    """The same tokens alone and among seven others, and a control that has to fail."""

    def parts() -> Parts:
        return assemble(engine, checkpoint, slots=8, threads=len(os.sched_getaffinity(0)))

    differ = mixes_differ(parts, mixes, seed=1)
    yield Line("same tokens in a crowd", f"{differ} of {mixes} mixes differ", "none", differ == 0)
    control = mixes_differ(lambda: keyed_by_row(parts()), mixes, seed=1)
    seen = f"{control} of {mixes} mixes differ"
    yield Line("  control: noise keyed by row", seen, "some", control > 0)


def hardship(engine: Path, checkpoint: Path) -> Iterator[Line]:
    """One server through many refusals and many clients that leave, and what is left of it."""
    settings = Settings.load(engine=engine, checkpoint=checkpoint, log_level="warning")
    before = set(shared_memory.DIRECTORY.glob(shared_memory.PREFIX + "*"))
    with tempfile.TemporaryDirectory() as scratch:
        server = TritonServer(
            MODEL_REPOSITORY, env=settings.environment(), log=Path(scratch) / "triton.log"
        )
        with server, Client(server.grpc_url) as client:
            session = server.pid
            refused = sum(_is_refused(client) for _ in range(BAD_REQUESTS))
            for seed in range(LEAVERS):
                updates = client.stream("x", stream="draft", seed=seed, **ENDLESS)
                next(updates)
                updates.close()
            answer = client.generate("x", seed=1, max_new_tokens=96, max_denoising_steps=2)
            server.check()
    yield Line(
        f"{BAD_REQUESTS} bad requests, {LEAVERS} clients that leave",
        f"{refused} refused, then {answer.usage['completion_tokens']} tokens",
        "all refused, then an answer",
        refused == BAD_REQUESTS and answer.usage["committed_tokens"] > 0,
    )
    regions = set(shared_memory.DIRECTORY.glob(shared_memory.PREFIX + "*")) - before
    left = [*session_members(session), *regions]
    yield Line("left behind afterwards", str(left or "nothing"), "nothing", not left)


def _is_refused(client: Client) -> bool:
    try:
        client.generate("x", max_new_tokens=0)
    except RequestRejected:
        return True
    return False


def speed(engine: Path, checkpoint: Path) -> Iterator[Line]:
    """The lines of `make bench`."""
    for figure in measure(engine, checkpoint, len(os.sched_getaffinity(0)), turns=5):
        yield Line(figure.name, figure.value, figure.limit, figure.holds)


def table(lines: list[Line], title: str) -> Table:
    result = Table(title=title, box=SIMPLE, title_justify="left")
    for heading in ("what", "seen", "promised", ""):
        result.add_column(heading)
    for line in lines:
        mark = "" if line.holds is None else "ok" if line.holds else "MISSED"
        result.add_row(line.what, line.seen, line.promised, mark)
    return result


def main(
    engine: Annotated[Path, typer.Option(help="Engine directory.")],
    checkpoint: Annotated[Path, typer.Option(help="Its checkpoint directory.")],
    count: Annotated[int, typer.Option(help="Tasks of each skill.", min=1)] = 500,
    mixes: Annotated[int, typer.Option(help="Random mixes of requests.", min=1)] = MIXES,
) -> None:
    """Print the table; some ten minutes. The exit code is 1 where a promise does not hold."""
    engine, checkpoint = engine.resolve(), checkpoint.resolve()
    console, progress = Console(width=WIDTH), Console(stderr=True)
    lines: list[Line] = []
    parts = assemble(engine, checkpoint, slots=8)
    for part in (
        quality(parts, count),
        identity(engine, checkpoint, mixes),
        hardship(engine, checkpoint),
        speed(engine, checkpoint),
    ):
        for line in part:
            progress.print(f"{line.what}: {line.seen}", highlight=False, markup=False)
            lines.append(line)
    console.print(table(lines, "the main job"))
    raise typer.Exit(int(any(line.holds is False for line in lines)))


if __name__ == "__main__":
    typer.run(main)
