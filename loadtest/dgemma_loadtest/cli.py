"""`dgemma-loadtest`: commands, their options and exit codes.

0: done; 1: it failed, or an SLO was missed; 2: the input is at fault; 3: the generator was too slow
for the figures to count.
"""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from dgemma_loadtest.cli_baseline import baseline
from dgemma_loadtest.cli_compare import compare_
from dgemma_loadtest.cli_evaluate import evaluate
from dgemma_loadtest.cli_report import report
from dgemma_loadtest.cli_run import run, scenarios
from dgemma_loadtest.errors import InputError

app = typer.Typer(
    help="Load tests: what a service that streams text does for many users at once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(run)
app.command()(scenarios)
app.command()(report)
app.command()(evaluate)
app.command("compare")(compare_)
app.command()(baseline)


def main() -> None:
    """The console script."""
    try:
        app()
    except InputError as error:
        Console(stderr=True).print(
            f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
