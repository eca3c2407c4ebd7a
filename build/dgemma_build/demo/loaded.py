"""`make loadtest`: the demo checkpoint under the load test's scenario `demo`, for two minutes.

Knows how the server is started; the load test is another program, which asks it from outside.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dgemma.errors import DgemmaError
from dgemma.settings import Settings
from dgemma.triton_server.server import TritonServer

MODEL_REPOSITORY = Path("model_repository")
TOO_SLOW = 3  # here server and load share the cores, so that it is said but no failure
COMMAND = (sys.executable, "-m", "dgemma_loadtest.cli", "run", "--scenario", "demo")


def main(
    engine: Annotated[Path, typer.Option(help="Engine directory.")],
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint directory.")],
    out: Annotated[Path, typer.Option(help="Where the results go.")],
    slots: Annotated[int, typer.Option(help="Of the server.", min=1)] = 4,
) -> None:
    """Start Triton, offer the load, say what came of it, stop. The exit code is the load test's."""
    console = Console(stderr=True, highlight=False)
    try:
        settings = Settings.load(engine=engine, checkpoint=checkpoint, slots=slots)
        with tempfile.TemporaryDirectory() as scratch:
            log = Path(scratch) / "triton.log"
            with console.status("starting the Triton server"):
                server = TritonServer(MODEL_REPOSITORY, env=settings.environment(), log=log)
                server.start()
            try:
                code = _offer(f"grpc://{server.grpc_url}", out)
            finally:
                server.stop()
    except DgemmaError as error:
        console.print(f"error: {error}", markup=False)
        raise typer.Exit(1) from None
    raise typer.Exit(0 if code == TOO_SLOW else code)


def _offer(target: str, out: Path) -> int:
    """Ctrl-C is the load test's: it keeps what was measured so far and ends."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        command = [*COMMAND, "--target", target, "--out", str(out)]
        return subprocess.run(command, check=False, preexec_fn=_heed).returncode
    finally:
        signal.signal(signal.SIGINT, before)


def _heed() -> None:
    """In the load test's process, which would inherit that it is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    typer.run(main)
