"""`dgemma tenants`: what an operator needs to write the tenants' file and to read the ledger.

Knows options and what goes to which stream; the work is done by `dgemma.tenants`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import date, datetime
from getpass import getpass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dgemma.cli_exit import BAD_INPUT, SERVER_FAILED, fail
from dgemma.errors import ConfigurationError

app = typer.Typer(no_args_is_help=True, help="Who may ask, and what it has cost them.")


@app.command("hash-key")
def hash_key(
    generate: Annotated[
        bool, typer.Option("--generate", help="Make a key, and print it on standard error.")
    ] = False,
) -> None:
    """Print the hash of an API key, as the tenants' file wants it.

    The key is read from standard input or asked for: others can see the arguments of a command.
    """
    from dgemma.tenants.keys import KeyHash, generate_key

    if generate:
        key = generate_key()
        typer.echo(f"the key, which is shown this once: {key}", err=True)
    elif sys.stdin.isatty():
        key = getpass("API key: ")
    else:
        key = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    try:
        typer.echo(str(KeyHash.of(key)))
    except ValueError as error:
        fail(str(error), BAD_INPUT)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A file of tenants.", metavar="FILE")],
) -> None:
    """Say what a file of tenants says, or everything that is wrong with it."""
    try:
        from dgemma.tenants.roster import Roster
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "dgemma":
            raise
        fail(f"check needs {error.name}: run pip install 'dgemma[server]'", SERVER_FAILED)
    try:
        roster = Roster.parse(file.read_bytes(), file)
    except OSError as error:
        fail(f"{file}: cannot be read: {error.strerror}", BAD_INPUT)
    except ConfigurationError as error:
        fail(str(error), BAD_INPUT)
    table = _table("tenant", "weight", "keys")
    limits = [asdict(tenant.limits) for tenant in roster.tenants]
    given = [name for name in limits[0] if any(entry[name] is not None for entry in limits)]
    for name in given:
        table.add_column(name.replace("_", " "), justify="right")
    for tenant, entry in zip(roster.tenants, limits, strict=True):
        ids = ", ".join(f"{key_id}…" for key_id in roster.key_ids(tenant))
        table.add_row(tenant.name, f"{tenant.weight:g}", ids, *(_cell(entry[n]) for n in given))
    _print(table)
    typer.echo(
        f"{file}: right; {len(roster.tenants)} tenants, {len(roster.shared_prefixes)} shared "
        "prefixes; every limit holds for one server, not for all replicas together"
    )


@app.command()
def usage(
    ledger: Annotated[Path, typer.Argument(help="What DGEMMA_LEDGER names.", metavar="LEDGER")],
    since: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="First day that counts, in UTC."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print what each tenant has used; a server may be writing meanwhile."""
    from dgemma.tenants.days import Days

    try:
        found = Days(ledger).usage(date.min if since is None else since.date())
    except ConfigurationError as error:
        fail(str(error), BAD_INPUT)
    by_tenant: dict[str, dict[str, Any]] = {name: asdict(found[name]) for name in sorted(found)}
    if as_json:
        typer.echo(json.dumps(by_tenant))
        return
    table = _table("tenant")
    for name in next(iter(by_tenant.values()), {}):
        table.add_column(name.replace("_", " "), justify="right")
    for name, totals in by_tenant.items():
        table.add_row(name, *(_cell(value) for value in totals.values()))
    _print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table


def _print(table: Table) -> None:
    """As wide as it is where nobody looks, for other programs to read."""
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


def _cell(value: int | None) -> str:
    return "-" if value is None else f"{value:,}".replace(",", " ")
