"""`dgemma revisions` and `dgemma rollback`: which revision of a model store is served.

Knows options and what goes to which stream; a service hears of a change at its next start.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal

from dgemma.checkpoint_manifest import content_of
from dgemma.cli_exit import BAD_INPUT, fail
from dgemma.errors import ConfigurationError
from dgemma.machine import Machine
from dgemma.profiles.engine_rollback import roll_engine_back
from dgemma.profiles.inventory import Inventory
from dgemma.profiles.pointer import Choice, Pointer, changing, current_of
from dgemma.profiles.profile import profiles
from dgemma.profiles.selection import is_meant
from dgemma.settings import DEFAULT_CACHE

app = typer.Typer(no_args_is_help=True, help="Which revision of a model store is served.")
_SHORTEST = 6  # digits that may stand for a revision's name
Store = Annotated[
    Path | None,
    typer.Option(help="Model store; without it NIM_MODEL_PATH's, or NIM_CACHE_PATH's."),
]


@app.command("list")
def list_revisions(
    store: Store = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the revisions of the checkpoint that a store has."""
    try:
        root = _root(store)
        pointer = Pointer.read(root)
        found = [_described(c, pointer) for c in Inventory.of(root).checkpoints]
    except ConfigurationError as error:
        fail(str(error), BAD_INPUT)
    if as_json:
        typer.echo(json.dumps({"pointer": pointer and asdict(pointer), "revisions": found}))
        return
    for one in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(one["written"]))
        typer.echo(
            f"{one['revision']}  {decimal(one['bytes'])}  {when}  {one['origin']}  {one['is']}"
        )
    if not found:
        typer.echo("no revision: bring one with `dgemma download-to-cache`", err=True)


@app.command("use")
def use(
    revision: Annotated[
        str, typer.Argument(help="A revision, or the id or name of a profile; its first digits do.")
    ],
    store: Store = None,
) -> None:
    """Serve another revision of the checkpoint, or one engine, from the next start on."""
    try:
        root = _root(store)
        choice = _choice(root, revision)
        with changing(root) as pointer:
            moved = (pointer or Pointer(Choice())).moved(choice)
            moved.write(root)
    except ConfigurationError as error:
        fail(str(error), BAD_INPUT)
    typer.echo(f"at the next start: {moved.current}", err=True)


def rollback(
    store: Store = None,
    engine: Annotated[
        bool,
        typer.Option("--engine", help="Of this machine's engines only: set the one aside."),
    ] = False,
) -> None:
    """Serve what was served before the last change; twice is back again."""
    try:
        root = _root(store)
        if engine:
            checkpoint = os.environ.get("DGEMMA_CHECKPOINT")
            served = roll_engine_back(
                root,
                Machine.here(),
                Path(checkpoint) if checkpoint else None,
                os.environ.get("DGEMMA_PREFERRED_PROFILE") or None,
            )
            typer.echo(f"at the next start: {served}", err=True)
            return
        with changing(root) as pointer:
            moved = (pointer or Pointer(Choice())).back(root)
            moved.checkpoint(root)
            moved.write(root)
    except ConfigurationError as error:
        fail(str(error), BAD_INPUT)
    typer.echo(f"at the next start: {moved.current}", err=True)


def _root(store: Path | None) -> Path:
    variables = ("NIM_MODEL_PATH", "NIM_CACHE_PATH")
    root = store or Path(next(filter(None, map(os.environ.get, variables)), DEFAULT_CACHE))
    if not root.is_dir():
        raise ConfigurationError(f"{root}: no such directory; set NIM_CACHE_PATH to a model store")
    return root


def _choice(root: Path, wanted: str) -> Choice:
    inventory = Inventory.of(root)
    names = [checkpoint.directory.name for checkpoint in inventory.checkpoints]
    meant = [n for n in names if n == wanted or (len(wanted) >= _SHORTEST and n.startswith(wanted))]
    if len(meant) == 1 or wanted in meant:
        return Choice(wanted if wanted in meant else meant[0])
    found = profiles(inventory, Machine.here())
    for profile in found:
        if is_meant(profile, root, wanted):
            held = [
                c.directory.name
                for c in inventory.checkpoints
                if c.manifest.content == profile.content
            ]
            current = current_of(root).checkpoint
            kept = current.name if current and _fits(current, profile.content) else None
            return Choice(kept or next(iter(held), None), profile.id)
    known = ", ".join((*names, *dict.fromkeys(profile.name for profile in found))) or "nothing"
    raise ConfigurationError(f"{wanted!r}: no one revision or profile of {root}; there: {known}")


def _fits(checkpoint: Path, content: str | None) -> bool:
    return content is None or content_of(checkpoint) in (None, content)


def _described(found: Any, pointer: Pointer | None) -> dict[str, Any]:
    name = found.directory.name
    is_current = pointer is not None and pointer.current.checkpoint == name
    was = pointer is not None and pointer.previous and pointer.previous.checkpoint == name
    return {
        "revision": name,
        "origin": found.manifest.origin,
        "bytes": found.size,
        "written": found.written,
        "is": "current" if is_current else "previous" if was else "",
    }
