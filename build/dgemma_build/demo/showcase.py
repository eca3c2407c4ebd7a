"""`make demo`: a Sudoku solved over gRPC by the real Triton server, before your eyes.

Knows the puzzle, the server and what to print; everything else is what any client uses. The exit
code is 0 only where the answer is right.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dgemma.client import Client, Generation, Update, gather
from dgemma.errors import DgemmaError
from dgemma.settings import Settings
from dgemma.triton_server.server import TritonServer
from dgemma.watch import watch
from dgemma_build.demo.prompts import SudokuTask, sudokus

MODEL_REPOSITORY = Path("model_repository")
SEED = 20_261_124
# A pass takes a few milliseconds here; the eye wants longer.
PAUSE_S = 0.15


def main(
    engine: Annotated[Path, typer.Option(help="Engine directory.")],
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint directory.")],
    blanks: Annotated[int, typer.Option(help="Cells to solve.", min=1, max=50)] = 30,
    seed: Annotated[int, typer.Option(help="Decides puzzle and noise.", min=0)] = SEED,
) -> None:
    """Solve one Sudoku and say what it took."""
    console = Console(highlight=False)
    [task] = sudokus(1, blanks, seed)
    try:
        settings = Settings.load(engine=engine, checkpoint=checkpoint)
        with tempfile.TemporaryDirectory() as scratch:
            log = Path(scratch) / "triton.log"
            with console.status("starting the Triton server"):
                server = TritonServer(MODEL_REPOSITORY, env=settings.environment(), log=log)
                server.start()
            try:
                console.print(f"Triton is ready on {server.grpc_url}. The puzzle:\n{task.prompt}\n")
                right = solve(server.grpc_url, task, seed, console)
            finally:
                server.stop()
    except DgemmaError as error:
        console.print(f"error: {error}", markup=False)
        raise typer.Exit(1) from None
    console.print("Triton has stopped.")
    raise typer.Exit(0 if right else 1)


def solve(url: str, task: SudokuTask, seed: int, console: Console) -> bool:
    """Ask once and show the canvas, ask again and take the time; whether both are right."""
    messages = [{"role": "user", "content": task.prompt}]
    with Client(url) as client:
        drafts = client.stream(messages=messages, seed=seed, stream="draft")
        shown = gather(watch(slowly(drafts, console), console))
        timed = client.generate(messages=messages, seed=seed)
    right = all(task.is_right(generation.text) for generation in (shown, timed))
    console.print(f"\n{figures(timed)}")
    console.print("The answer is right." if right else "The answer is WRONG.")
    return right


def slowly(updates: Iterable[Update], console: Console) -> Iterator[Update]:
    """Each draft stays on a terminal for a moment."""
    for update in updates:
        yield update
        if update.kind == "draft" and console.is_terminal:
            time.sleep(PAUSE_S)


def figures(generation: Generation) -> str:
    """Tokens/s, steps and passes of an answer, as the service counted them."""
    usage = generation.usage
    seconds, tokens = usage["total_ms"] / 1000, usage["completion_tokens"]
    return (
        f"{tokens} tokens in {seconds * 1000:.0f} ms: {tokens / seconds:.0f} tokens/s, "
        f"{sum(usage['denoising_steps'])} denoise steps, {usage['passes']} passes"
    )


if __name__ == "__main__":
    typer.run(main)
