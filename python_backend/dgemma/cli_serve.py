"""`dgemma serve` and `nim-serve`: the service in the foreground.

Knows options and exit codes; the work is done by `dgemma.serve`.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from dgemma.cli_exit import BAD_INPUT, INTERRUPTED, SERVER_FAILED, fail
from dgemma.errors import ConfigurationError, DgemmaError


def serve(
    model_repository: Annotated[
        Path | None,
        typer.Option(help="Triton model repository, DGEMMA_MODEL_REPOSITORY.", metavar="DIR"),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A variable, which wins over the environment.", metavar="KEY=VALUE"
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of variables, which the environment wins over.", metavar="FILE"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print every setting and its source, and end.")
    ] = False,
) -> None:
    """Serve gRPC and HTTP in the foreground; settings are variables (NIM_*, DGEMMA_*)."""
    try:
        from dgemma.serve import serve as run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "dgemma":
            raise
        fail(f"serve needs {error.name}: run pip install 'dgemma[server]'", SERVER_FAILED)
    given = list(overrides or [])
    if model_repository is not None:
        given.append(f"DGEMMA_MODEL_REPOSITORY={model_repository}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # process 1 would not hear of it
    try:
        ended = run(given, config, dry_run)
    except DgemmaError as error:
        code = BAD_INPUT if isinstance(error, ConfigurationError) else SERVER_FAILED
        fail(str(error), code, as_json=_json_log())
    except KeyboardInterrupt:
        fail("interrupted before the service was ready", INTERRUPTED, as_json=_json_log())
    if ended.code:
        fail(ended.why, ended.code, as_json=_json_log())


def _json_log() -> bool:
    """As far as can be told where the settings themselves are at fault."""
    return os.environ.get("NIM_JSONL_LOGGING", "").lower() in ("1", "true", "on", "yes", "y", "t")


def main() -> None:
    """`nim-serve`."""
    from dgemma.cli import prepare

    prepare()
    typer.run(serve)
