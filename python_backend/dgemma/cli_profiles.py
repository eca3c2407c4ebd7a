"""`dgemma profiles`: what a model store holds, what would be served, and what can go.

Knows options, exit codes and what goes to which stream. Also installed as `list-model-profiles`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal

from dgemma.checkpoint_manifest import content_of
from dgemma.compatibility import target_of
from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.machine import Machine
from dgemma.profiles.first_start import sources
from dgemma.profiles.inventory import Inventory
from dgemma.profiles.listing import Listing
from dgemma.profiles.pointer import FILE_NAME as POINTER
from dgemma.profiles.pointer import current_of
from dgemma.profiles.profile import Profile, profiles
from dgemma.profiles.prune import freed, remove, verdicts
from dgemma.profiles.selection import empty, is_preferred, named
from dgemma.settings import DEFAULT_CACHE

BAD_INPUT, FAILED = 2, 1
_WIDE = 200  # columns, where nobody watches


def show_profiles(
    store: Annotated[
        Path | None,
        typer.Argument(help="Model store; without it NIM_MODEL_PATH's, or NIM_CACHE_PATH's."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(envvar="NIM_MODEL_PROFILE", help="What a service is told to serve."),
    ] = None,
    preferred: Annotated[
        str | None,
        typer.Option(
            envvar="DGEMMA_PREFERRED_PROFILE", help="What it tries first: precision or profile."
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(envvar="DGEMMA_CHECKPOINT", help="Checkpoint that is to be served."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash every file; sizes are compared anyhow.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove what nothing refers to, after asking.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what --prune would remove, and stop.")
    ] = False,
) -> None:
    """List the engines and weights of a model store, and which of them would be served here."""
    # An argument that a shell gave as "" is one that was not given, as for every variable.
    root = store or Path(
        os.environ.get("NIM_MODEL_PATH") or os.environ.get("NIM_CACHE_PATH") or DEFAULT_CACHE
    )
    try:
        listing = look(
            *(root, Machine.here(), profile or None, checkpoint),
            preferred=preferred or None,
            deep=verify,
        )
        if as_json:
            typer.echo(json.dumps(listing.to_json(), indent=1))
        else:
            _console().print(listing.tables())
        if prune or dry_run:
            _prune(listing, yes=yes, dry_run=dry_run)
    except ConfigurationError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(BAD_INPUT) from None


def look(
    root: Path,
    machine: Machine,
    wanted: str | None = None,
    checkpoint: Path | None = None,
    *,
    preferred: str | None = None,
    deep: bool = False,
) -> Listing:
    """A model store as a service that starts on `machine` would find it.

    Without `wanted` and `checkpoint` they are what the store's pointer says, if it has one.
    """
    inventory = Inventory.of(root, deep)
    current = current_of(root, checkpoint)
    geometry = Geometry.from_checkpoint(current.checkpoint) if current.checkpoint else None
    content = content_of(current.checkpoint) if current.checkpoint else None
    found = profiles(inventory, machine, geometry, content)
    found.sort(key=lambda profile: not is_preferred(profile, root, preferred))
    named_by = "NIM_MODEL_PROFILE" if wanted else f"{root / POINTER}"
    chosen, why = _choice(found, root, wanted or current.profile, named_by)
    target = target_of(machine)
    lacks_engine = not any(p.refusal is None and p.engine.manifest.target == target for p in found)
    to_build_of = sources(inventory.weights, target) if lacks_engine else []
    return Listing(
        inventory, machine, found, chosen, why, verdicts(inventory, found, chosen, to_build_of)
    )


def _choice(
    found: list[Profile], root: Path, wanted: str | None, named_by: str
) -> tuple[Profile | None, str]:
    if wanted is not None:
        try:
            return named(found, root, wanted), f"named by {named_by}"
        except ConfigurationError as error:
            return None, str(error)
    chosen = next((profile for profile in found if profile.refusal is None), None)
    if chosen is not None:
        return chosen, "the preferred one of those that can be served here"
    return None, "no engine fits this machine" if found else empty(root)


def _prune(listing: Listing, *, yes: bool, dry_run: bool) -> None:
    removable = listing.removable
    size = decimal(freed(removable))
    for found in removable:
        typer.echo(f"{'would remove' if dry_run else 'to remove'} {found.directory}", err=True)
    if dry_run or not removable:
        typer.echo(f"{size} would be freed" if removable else "nothing to remove", err=True)
        return
    if not yes:
        if not _somebody_is_there():
            raise ConfigurationError("--prune asks before it removes; nobody is there: add --yes")
        typer.confirm(f"Remove {len(removable)} directories, {size}?", abort=True, err=True)
    left = 0
    for found in removable:
        try:
            remove(found)
        except ConfigurationError as error:
            left += 1
            typer.echo(f"error: {error}", err=True)
    typer.echo(
        f"removed {len(removable) - left}, freed {size}"
        if not left
        else f"removed {len(removable) - left}, {left} are left",
        err=True,
    )
    if left:
        raise typer.Exit(FAILED)


def _somebody_is_there() -> bool:
    return sys.stdin.isatty()


def _console() -> Console:
    return (
        Console(highlight=False) if sys.stdout.isatty() else Console(width=_WIDE, highlight=False)
    )


def main() -> None:
    """`list-model-profiles`."""
    typer.run(show_profiles)
