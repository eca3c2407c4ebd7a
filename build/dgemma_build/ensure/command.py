"""`dgemma-build ensure`: options, exit codes and what is said.

Knows how a container is asked to end; every decision is made in the modules beside it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from dgemma.download.arrival import DownloadFailed
from dgemma.errors import DgemmaError
from dgemma.machine import Machine
from dgemma.settings import DEFAULT_CACHE
from dgemma_build.cli_targets import TargetsOption
from dgemma_build.ensure.order import AUTO, Order
from dgemma_build.ensure.run import Ensured, Told, others_that_fit
from dgemma_build.ensure.run import ensure as run
from dgemma_build.ensure.source import found, make_current
from dgemma_build.progress import shown

DOWNLOAD_FAILED, FAILED, SET_ASIDE = 1, 2, 3


class _Ended(BaseException):
    """SIGTERM."""


def ensure(
    store: Annotated[
        Path | None,
        typer.Option(help="Model store; without it NIM_MODEL_PATH's, or NIM_CACHE_PATH's."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            envvar="DGEMMA_CHECKPOINT",
            help="Directory, or hf://ORG/NAME to bring it; without it the store's current one.",
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Of hf://ORG/NAME; without it what the store has of it.")
    ] = None,
    target: Annotated[
        str, typer.Option(help="What to compile for; auto: this machine's GPU, or cpu.")
    ] = AUTO,
    precision: Annotated[
        str, typer.Option(help="auto: the checkpoint's own, or the one preferred for the target.")
    ] = AUTO,
    slots: Annotated[
        int | None,
        typer.Option(
            min=1, max=32, envvar="DGEMMA_SLOTS", help="Of the service; GPUs' engines have room."
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=1, envvar="NIM_MAX_MODEL_LEN", help="Tokens of a slot of the service."),
    ] = None,
    targets: TargetsOption = None,
) -> None:
    """Make a model store hold a verified engine for this machine; nothing where it does.

    An engine that is found wrong is set aside; exit code 3 where nothing else can be served then.
    Ended at any moment and run again, it goes on. Several may run at once.
    """
    console = Console(stderr=True)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    began = time.monotonic()
    variables = ("NIM_MODEL_PATH", "NIM_CACHE_PATH")
    root = store or Path(next(filter(None, map(os.environ.get, variables)), DEFAULT_CACHE))
    machine = Machine.here()
    try:
        with _ended_by_a_signal(), shown(console) as progress:
            source = found(root, checkpoint or None, revision or None, say)
            order = Order(
                root, source.directory, target, precision, slots, context, targets=targets
            )
            ensured = run(order, machine, Told(say, progress))
            if ensured.aside is None and (source.is_new or ensured.done):
                make_current(root, source.directory)
            others = others_that_fit(ensured, order, machine)
    except DownloadFailed as error:
        say(f"error: {error}")
        raise typer.Exit(DOWNLOAD_FAILED) from None
    except DgemmaError as error:
        say(f"error: {error}")
        raise typer.Exit(FAILED) from None
    except (_Ended, KeyboardInterrupt) as signalled:
        say("ended before it was done; run the same command again to go on from here")
        # Threads of the hub's client may still wait for the network.
        os._exit(128 + (signal.SIGTERM if isinstance(signalled, _Ended) else signal.SIGINT))
    say(_summary(ensured, others, time.monotonic() - began))
    if ensured.aside is not None and not others:
        raise typer.Exit(SET_ASIDE)


def _summary(ensured: Ensured, others: list[str], seconds: float) -> str:
    if ensured.aside is not None:
        then = f"a service serves {others[0]}" if others else "nothing else can be served here"
        return (
            f"error: {ensured.directory} is not used: {ensured.aside}; {then}. "
            "Remove the directory to have it built again"
        )
    if not ensured.done:
        return f"{ensured.directory} is up to date and verified; nothing to do"
    return f"{ensured.directory} is ready: {', '.join(ensured.done)} in {seconds:.0f} s"


@contextmanager
def _ended_by_a_signal() -> Iterator[None]:
    """SIGTERM ends the block, also as process 1, which has no default of its own for it."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise _Ended

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
