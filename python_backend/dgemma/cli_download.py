"""`dgemma download-to-cache`: a model into the local model store, from a mirror or from the hub.

Knows options, exit codes and what goes to which stream. Also installed as `download-to-cache`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from dgemma.cli_exit import BAD_INPUT, INTERRUPTED, SERVER_FAILED, fail
from dgemma.download.arrival import DownloadFailed
from dgemma.download.progress import Progress
from dgemma.errors import ConfigurationError
from dgemma.settings import DEFAULT_CACHE


def download(
    names: Annotated[
        list[str] | None, typer.Argument(help="More of --profiles.", metavar="PROFILE...")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            envvar="NIM_MODEL_NAME",
            help="hf://ORG/NAME[@REVISION], or the directory or file:// URL of a mirror.",
        ),
    ] = None,
    wanted: Annotated[
        list[str] | None,
        typer.Option(
            "--profiles",
            "-p",
            help="Names or ids of a mirrored store's profiles; without any, the one for here.",
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Everything that the mirror has.")
    ] = False,
    lora: Annotated[bool, typer.Option("--lora", help="Refused: the model has none.")] = False,
    store: Annotated[
        Path | None, typer.Option(envvar="NIM_CACHE_PATH", help="The model store to bring it into.")
    ] = None,
    use: Annotated[
        bool, typer.Option(help="Serve it at the next start, if the store has engines for it.")
    ] = True,
) -> None:
    """Bring a model into the local model store; run it again to go on where it was interrupted."""
    root = store or Path(os.environ.get("NIM_CACHE_PATH") or DEFAULT_CACHE)
    profiles = [*(wanted or []), *(names or [])]
    try:
        from dgemma.download.bring import Order, bring
    except ModuleNotFoundError as error:
        fail(f"download-to-cache needs {error.name}: run pip install 'dgemma[server]'", BAD_INPUT)
    try:
        if lora:
            raise ConfigurationError("--lora: the model has no adapters; leave it out")
        if not source:
            raise ConfigurationError("--source: not given, nor NIM_MODEL_NAME; name a model")
        if profiles and everything:
            raise ConfigurationError("--all: includes every one of --profiles; give one of both")
        with Progress() as progress, _interrupted_by_signals(progress):
            done = bring(Order(source, tuple(profiles), everything, use), root, progress)
    except (ConfigurationError, DownloadFailed) as error:
        fail(str(error), BAD_INPUT if isinstance(error, ConfigurationError) else SERVER_FAILED)
    except KeyboardInterrupt:
        typer.echo("error: interrupted; run it again to go on from here", err=True)
        os._exit(INTERRUPTED)  # threads of the hub's client may still wait for the network
    for checkpoint in done.checkpoints:
        typer.echo(checkpoint.directory)
    typer.echo(done.says, err=True)


@contextmanager
def _interrupted_by_signals(progress: Progress) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        progress.stop()
        raise KeyboardInterrupt

    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """`download-to-cache`."""
    typer.run(download)
