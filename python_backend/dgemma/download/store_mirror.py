"""Engines, weights and revisions from another model store, offline.

Knows which of them are wanted, and where they stand in this store: each under a name of its own,
so that generations of one profile stand side by side.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dgemma.checkpoint_manifest import is_name
from dgemma.compatibility import target_of
from dgemma.download.arrival import Original, arriving, check_space, copy, settle
from dgemma.download.mirror import bring_checkpoint
from dgemma.download.progress import Progress
from dgemma.errors import ConfigurationError
from dgemma.machine import Machine
from dgemma.profiles.first_start import sources
from dgemma.profiles.inventory import FoundCheckpoint, FoundEngine, FoundWeights, Inventory, read
from dgemma.profiles.layout import ENGINE, WEIGHTS
from dgemma.profiles.pointer import Pointer
from dgemma.profiles.profile import Profile, profiles
from dgemma.profiles.selection import is_meant

_SHORT = 12


@dataclass(frozen=True)
class Picked:
    """What is brought of a store."""

    engines: tuple[FoundEngine, ...]
    weights: tuple[FoundWeights, ...]
    checkpoints: tuple[FoundCheckpoint, ...]


def pick(root: Path, machine: Machine, names: Sequence[str], everything: bool) -> Picked:
    """What is named; or what would be served on `machine`; or everything that is whole.

    Raises ConfigurationError where a name is not known, or nothing fits and nothing is named.
    """
    inventory = Inventory.of(root)
    if everything:
        return Picked(inventory.engines, inventory.weights, inventory.checkpoints)
    current = _current(inventory)
    found = profiles(inventory, machine, content=current.manifest.content if current else None)
    if names:
        chosen = [profile for name in names for profile in [_named(found, root, name)]]
    else:
        chosen = [profile for profile in found if profile.refusal is None][:1]
    weights = [profile.weights for profile in chosen if profile.weights is not None]
    if not chosen:
        weights = sources(inventory.weights, target_of(machine))[:1]
    contents = {profile.content for profile in chosen} | {w.manifest.source for w in weights}
    checkpoints = [c for c in inventory.checkpoints if c.manifest.content in contents]
    if not checkpoints and current is not None:
        checkpoints = [current]
    if not (chosen or weights or checkpoints):
        known = ", ".join(sorted({profile.name for profile in found})) or "no engine and no weights"
        raise ConfigurationError(
            f"{root}: holds nothing that can be served here; there: {known}; name some with "
            "--profiles, or take everything with --all"
        )
    return Picked(
        tuple({p.engine.id: p.engine for p in chosen}.values()),
        tuple({w.id: w for w in weights}.values()),
        tuple(checkpoints),
    )


def bring(picked: Picked, source: Path, root: Path, progress: Progress) -> list[FoundCheckpoint]:
    """Copy it into the store `root`; what is there already, bit by bit, is not copied.

    Raises ConfigurationError where it does not fit, DownloadFailed where it is damaged.
    """
    target = Inventory.of(root) if root.is_dir() else None
    held: list[FoundEngine | FoundWeights] = [*target.engines, *target.weights] if target else []
    there = {found.id: found.directory for found in held}
    wanted: list[FoundEngine | FoundWeights] = [*picked.engines, *picked.weights]
    missing = [found for found in wanted if found.id not in there or not _is_whole(there[found.id])]
    size = sum(found.size for found in missing)
    check_space(root, size + sum(c.size for c in picked.checkpoints), source)
    for found in missing:
        _bring_one(found, there.get(found.id) or _place(found, root), source, progress)
    return [bring_checkpoint(c.directory, root, progress) for c in picked.checkpoints]


def _bring_one(
    found: FoundEngine | FoundWeights, place: Path, source: Path, progress: Progress
) -> None:
    """The manifest comes last; its time, which says what is newest, comes with it."""
    name = ENGINE if isinstance(found, FoundEngine) else WEIGHTS
    records = found.manifest.files
    for file in records:
        if not is_name(file):
            raise ConfigurationError(f"{found.directory / name}: {file!r} is no name of a file")
    with arriving(place, source) as work:
        progress.expect(place.name, sum(record.size for record in records.values()))
        for file, record in records.items():
            original = Original(found.directory / file, record.size, record.sha256)
            copy(original, work / file, source, progress.advance)
        path = found.directory / name
        status = path.stat()
        copy(Original(path, status.st_size, found.id), work / name, source, lambda size: None)
        os.utime(work / name, ns=(status.st_atime_ns, status.st_mtime_ns))
        settle(work, place)


def _place(found: FoundEngine | FoundWeights, root: Path) -> Path:
    made, key = found.manifest, found.id[:_SHORT]
    if isinstance(found, FoundWeights):
        return root / "weights" / f"{made.precision}-{key}"
    return root / "engines" / f"{found.manifest.target}-{made.precision}-{key}"


def _is_whole(directory: Path) -> bool:
    return isinstance(read(directory, deep=True), FoundEngine | FoundWeights)


def _current(inventory: Inventory) -> FoundCheckpoint | None:
    """The revision that the store serves; the only one where it does not say."""
    pointer = Pointer.read(inventory.root)
    for checkpoint in inventory.checkpoints:
        if pointer and checkpoint.directory.name == pointer.current.checkpoint:
            return checkpoint
    return inventory.checkpoints[0] if len(inventory.checkpoints) == 1 else None


def _named(found: Sequence[Profile], root: Path, name: str) -> Profile:
    for profile in found:
        if is_meant(profile, root, name):
            return profile
    known = ", ".join(dict.fromkeys(profile.name for profile in found)) or "none"
    raise ConfigurationError(f"--profiles: {name!r} is not in {root}; there: {known}")
