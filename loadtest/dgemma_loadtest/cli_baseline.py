"""`dgemma-loadtest baseline`: an autoregressive endpoint at a platform's speed, without a GPU."""

from __future__ import annotations

from typing import Annotated

import typer
from aiohttp import web
from rich.console import Console

from dgemma_loadtest.baseline.server import application, model_name
from dgemma_loadtest.errors import InputError
from dgemma_loadtest.modelled.roofline import READINGS, Machine

CONTEXT = 4096  # tokens of a sequence, for how many fit into memory


def baseline(
    platform: Annotated[str, typer.Option(help="As h100; the precision may stand behind it.")],
    precision: Annotated[str | None, typer.Option(help="Else the platform's own.")] = None,
    reading: Annotated[str, typer.Option(help="Of the published figure: sum or max.")] = "sum",
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8100,
    slots: Annotated[int, typer.Option(help="Sequences in a pass, at most.", min=1)] = 256,
) -> None:
    """Serve OpenAI's chat and completions as fast as Gemma 4 would; answers mean nothing.

    For `run --baseline http://HOST:PORT`. Everything that comes out says `simulated`.
    """
    if reading not in READINGS:
        raise InputError(f"reading: got {reading!r}; allowed: {', '.join(READINGS)}")
    name = platform if precision is None else f"{platform}-{precision}"
    machine = Machine.named(name, "sum" if reading == "sum" else "max")
    room = machine.room(CONTEXT)
    if not room:
        raise InputError(f"platform: {machine.name}: the weights do not fit into its memory")
    said = f"{model_name(machine)}: {min(slots, room)} sequences, http://{host}:{port}"
    Console().print(said, highlight=False, markup=False, soft_wrap=True)
    web.run_app(application(machine, min(slots, room)), host=host, port=port, print=None)
