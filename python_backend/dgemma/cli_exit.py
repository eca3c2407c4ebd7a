"""How every command ends that cannot do what was asked.

Exit codes: 0 done, 1 the server or the engine failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NoReturn

import typer

from dgemma.log_lines import of_error
from dgemma.watch import visible

SERVER_FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130


def fail(message: str, code: int, *, as_json: bool = False) -> NoReturn:
    """Say why on standard error, a line for each line of the message, and end.

    `as_json` is for a service: one line, as of its log.
    """
    if as_json:
        typer.echo(of_error(message, datetime.now(UTC), "supervisor"), err=True)
        raise typer.Exit(code)
    for line in message.split("\n"):
        typer.echo(f"error: {visible(line)}", err=True)
    raise typer.Exit(code)
