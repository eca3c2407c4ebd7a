"""Brings what an operator orders into a model store, and lets it be served.

Knows the order of the steps and when the store's pointer moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dgemma.download.hub import bring_from_hub
from dgemma.download.mirror import bring_checkpoint
from dgemma.download.progress import Progress
from dgemma.download.source import Hub, parse
from dgemma.download.store_mirror import bring as bring_store
from dgemma.download.store_mirror import pick
from dgemma.errors import ConfigurationError
from dgemma.machine import Machine
from dgemma.profiles.inventory import FoundCheckpoint, Inventory
from dgemma.profiles.pointer import Choice, Pointer, changing


@dataclass(frozen=True)
class Order:
    """`profiles` are names or ids; none: what fits this machine."""

    source: str
    profiles: tuple[str, ...] = ()
    everything: bool = False
    use: bool = True


@dataclass(frozen=True)
class Brought:
    """What is in the store, and a line about what will be served."""

    checkpoints: Sequence[FoundCheckpoint]
    says: str


def bring(order: Order, root: Path, progress: Progress) -> Brought:
    """Raises ConfigurationError and DownloadFailed; what came until then is kept to go on from."""
    source = parse(order.source)
    holds_checkpoint = isinstance(source, Hub) or (source.directory / "config.json").is_file()
    if order.profiles and holds_checkpoint:
        raise ConfigurationError(
            f"--profiles: {source} holds a checkpoint and no profiles; leave it out, and build "
            "them with dgemma-build"
        )
    if isinstance(source, Hub):
        found = [bring_from_hub(source, root, progress)]
    elif holds_checkpoint:
        found = [bring_checkpoint(source.directory, root, progress)]
    else:
        if root.resolve() == source.directory:
            raise ConfigurationError(f"--source: {source} is the model store itself")
        picked = pick(source.directory, Machine.here(), order.profiles, order.everything)
        found = bring_store(picked, source.directory, root, progress)
    return Brought(found, _use(root, found, order.use))


def _use(root: Path, found: Sequence[FoundCheckpoint], wanted: bool) -> str:
    """Move the pointer, unless the store could serve less with it than without."""
    if len(found) != 1:
        several = "choose a revision with `dgemma revisions use REVISION`" if found else ""
        return f"{root} has it; {several or 'it brought no checkpoint: set DGEMMA_CHECKPOINT'}"
    [checkpoint] = found
    revision = checkpoint.directory.name
    with changing(root) as pointer:
        if pointer is not None and pointer.current.checkpoint == revision:
            return f"{revision} is current already"
        if not wanted:
            return f"{revision} is there; `dgemma revisions use {revision}` serves it"
        if pointer is not None and not _can_serve(root, checkpoint.manifest.content):
            return (
                f"{revision} is there, and {root} has no weights for it; make an engine of it with "
                f"dgemma-build, and then `dgemma revisions use {revision}`"
            )
        choice = Choice(revision)
        (pointer.moved(choice) if pointer else Pointer(choice)).write(root)
    return f"{revision} is current, and served at the next start"


def _can_serve(root: Path, content: str) -> bool:
    inventory = Inventory.of(root)
    held = (engine.manifest.checkpoint for engine in inventory.engines)
    return content in (*held, *(store.manifest.source for store in inventory.weights))
