"""The checkpoint that an engine is to be made of, brought into the store where it is to be.

Knows when the hub need not be asked and when the store's pointer moves; knows nothing of engines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dgemma.download.bring import Order, bring
from dgemma.download.progress import Progress
from dgemma.errors import ConfigurationError
from dgemma.profiles.inventory import FoundCheckpoint, Inventory
from dgemma.profiles.pointer import CHECKPOINTS, Choice, Pointer, changing, current_of

HUB = "hf://"


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine; `is_new`: it was brought just now."""

    directory: Path
    is_new: bool = False


def found(
    root: Path, wanted: str | None, revision: str | None, say: Callable[[str], None]
) -> Source:
    """The checkpoint that is `wanted`, a directory or hf://ORG/NAME, or the store's current one.

    What the store has of a source is taken without asking for newer: of one `revision`, or the
    current one. Raises ConfigurationError and DownloadFailed.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{root}: cannot be written: {error}") from None
    if wanted is None:
        if (current := current_of(root).checkpoint) is not None:
            return Source(current)
        raise ConfigurationError(
            f"DGEMMA_CHECKPOINT: not set, and {root} has no current revision; name a checkpoint "
            "with --checkpoint, or bring one with `dgemma download-to-cache`"
        )
    if not wanted.startswith(HUB):
        if revision is not None:
            raise ConfigurationError(f"--revision: goes with {HUB}ORG/NAME; {wanted} is one itself")
        if not (Path(wanted) / "config.json").is_file():
            raise ConfigurationError(f"{wanted}: no checkpoint here: it has no config.json")
        return Source(Path(wanted))
    if (here := _in_store(root, wanted, revision)) is not None:
        return Source(here)
    source = f"{wanted}@{revision}" if revision and "@" not in wanted else wanted
    say(f"bringing {source} into {root}")
    with Progress() as progress:
        [brought] = bring(Order(source, use=False), root, progress).checkpoints
    return Source(brought.directory, is_new=True)


def make_current(root: Path, checkpoint: Path) -> None:
    """Serve a revision of the store from the next start on; others are served by their path."""
    if checkpoint.resolve().parent != (root / CHECKPOINTS).resolve():
        return
    with changing(root) as pointer:
        if pointer is None or pointer.current.checkpoint != checkpoint.name:
            choice = Choice(checkpoint.name)
            (pointer.moved(choice) if pointer else Pointer(choice)).write(root)


def _in_store(root: Path, wanted: str, revision: str | None) -> Path | None:
    repository, _, named = wanted.partition("@")
    revision = revision or named or None
    every = Inventory.of(root).checkpoints
    if revision is not None:  # also where it came by way of a mirror
        return next((c.directory for c in every if c.directory.name == revision), None)
    held = [c for c in every if _is_of(c, repository)]
    current = current_of(root).checkpoint
    if current in [c.directory for c in held]:
        return current
    return max(held, key=lambda c: c.written).directory if held else None


def _is_of(checkpoint: FoundCheckpoint, repository: str) -> bool:
    return checkpoint.manifest.origin.partition("@")[0] == repository
