"""What of a model store nothing refers to, and its removal.

Knows which generations are kept; deletes nothing that is used, built, pinned or somebody else's.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dgemma.errors import ConfigurationError
from dgemma.profiles.inventory import (
    Broken,
    Found,
    FoundCheckpoint,
    FoundEngine,
    FoundWeights,
    Inventory,
    SetAside,
)
from dgemma.profiles.layout import ASIDE, PRUNED, UNFINISHED, files, foreign
from dgemma.profiles.locks import builder_of, building, unused
from dgemma.profiles.pointer import Choice, Pointer, changing
from dgemma.profiles.profile import Profile

GENERATIONS = 2  # of every profile: the newest, and the one before it to go back to
_AGES = ("the newest of its name", "the one before, to go back to", "pinned")


@dataclass(frozen=True)
class Verdict:
    """Of one directory: why it is kept, or why it can go."""

    found: Found
    keep: bool
    why: str


def verdicts(
    inventory: Inventory,
    profiles: Sequence[Profile],
    chosen: Profile | None,
    wanted_weights: Sequence[FoundWeights] = (),
) -> list[Verdict]:
    """One for every directory. `wanted_weights` are what an engine would be built of at a start."""
    reasons = _references(profiles, chosen)
    for choice, why in _choices(inventory.root):
        _refer_to_choice(choice, why, inventory, profiles, reasons)
    _refer_to_origins(inventory, reasons)
    for store in wanted_weights:
        reasons.setdefault(store.directory, "an engine for this machine is built of it at a start")
    return [_verdict(found, reasons, inventory.root) for found in inventory.everything]


def freed(removable: Sequence[Found]) -> int:
    """Bytes that removing all of them frees: files may have names elsewhere too."""
    links: dict[tuple[int, int], list[os.stat_result]] = defaultdict(list)
    for found in removable:
        for path in files(found.directory):
            status = path.stat()
            links[status.st_dev, status.st_ino].append(status)
    return sum(same[0].st_size for same in links.values() if len(same) >= same[0].st_nlink)


def remove(found: Found) -> None:
    """Remove a directory; it is gone under its name at once, whatever happens afterwards.

    Raises ConfigurationError where it is used or built by now, or cannot be removed.
    """
    directory = found.directory.resolve()
    try:
        with (
            _not_current(found),
            building(_becomes(directory), _refuse),
            unused(directory) as free,
        ):
            if not free:
                raise ConfigurationError(f"{directory}: is in use")
            away = directory
            if directory.suffix != PRUNED:
                away = directory.with_name(directory.name + PRUNED)
                directory.rename(away)
        shutil.rmtree(away)
    except OSError as error:
        raise ConfigurationError(f"{directory}: cannot be removed: {error}") from None


@contextmanager
def _not_current(found: Found) -> Iterator[None]:
    """It does not become the current revision within the block."""
    if not isinstance(found, FoundCheckpoint):
        yield
        return
    directory = found.directory
    with changing(directory.parent.parent) as pointer:
        chosen = (pointer.current, pointer.previous) if pointer else ()
        if directory.name in [choice.checkpoint for choice in chosen if choice]:
            raise ConfigurationError(f"{directory}: is current by now, or the previous one")
        yield


def _references(profiles: Sequence[Profile], chosen: Profile | None) -> dict[Path, str]:
    """Directory -> what refers to it: generations of a name, and of the weights of each of them."""
    reasons: dict[Path, str] = {}

    def refer(profile: Profile, why: str) -> None:
        reasons.setdefault(profile.engine.directory, why)
        if profile.weights is not None:
            reasons.setdefault(profile.weights.directory, f"weights of {profile.name}, {why}")

    if chosen is not None:
        refer(chosen, "would be served here")
    by_name: dict[str, dict[Path, list[Profile]]] = defaultdict(lambda: defaultdict(list))
    for profile in profiles:
        by_name[profile.name][profile.engine.directory].append(profile)
    for engines in by_name.values():
        newest = sorted(engines.values(), key=lambda same: same[0].engine.written, reverse=True)
        for age, same in enumerate(newest):
            if age < GENERATIONS or same[0].engine.pinned:
                # The first of them has the newest weights: see `ranked`.
                for profile in same[:GENERATIONS]:
                    refer(profile, _AGES[min(age, GENERATIONS)])
    return reasons


def _choices(root: Path) -> list[tuple[Choice, str]]:
    pointer = Pointer.read(root)
    if pointer is None:
        return []
    before = [(pointer.previous, "of the previous revision")] if pointer.previous else []
    return [(pointer.current, "of the current revision"), *before]


def _refer_to_choice(
    choice: Choice,
    why: str,
    inventory: Inventory,
    profiles: Sequence[Profile],
    reasons: dict[Path, str],
) -> None:
    """A revision's checkpoint, its weights, and the newest of every name that runs on them."""
    contents = set()
    for checkpoint in inventory.checkpoints:
        if checkpoint.directory.name == choice.checkpoint:
            reasons.setdefault(checkpoint.directory, f"checkpoint {why}")
            contents.add(checkpoint.manifest.content)
    newest: dict[str, Profile] = {}
    for profile in profiles:
        if profile.content in contents and (
            profile.name not in newest or profile.written > newest[profile.name].written
        ):
            newest[profile.name] = profile
    for profile in (*newest.values(), *(p for p in profiles if p.id == choice.profile)):
        reasons.setdefault(profile.engine.directory, why)
        if profile.weights is not None:
            reasons.setdefault(profile.weights.directory, f"weights {why}")
    for store in inventory.weights:
        if store.manifest.source in contents:
            reasons.setdefault(store.directory, f"weights {why}")


def _refer_to_origins(inventory: Inventory, reasons: dict[Path, str]) -> None:
    """Weights that an engine holds itself are still what other machines' engines need."""
    for engine in inventory.engines:
        if engine.directory in reasons or engine.pinned:
            made = engine.manifest
            origin = (made.checkpoint, made.geometry, made.precision, made.policy)
            for store in inventory.weights:
                held = store.manifest
                if (held.source, held.geometry, held.precision, held.policy) == origin:
                    why = "an engine that is kept was built of it, and others would be"
                    reasons.setdefault(store.directory, why)


def _verdict(found: Found, reasons: dict[Path, str], root: Path) -> Verdict:
    directory = found.directory
    if found.pinned:
        return Verdict(found, True, "pinned")
    if isinstance(found, SetAside):
        return Verdict(found, True, "set aside; while it is there nothing builds it again")
    if directory in reasons:
        return Verdict(found, True, reasons[directory])
    if directory == root or not directory.resolve().is_relative_to(root.resolve()):
        return Verdict(found, True, "not inside the store")
    known: Collection[str] = ()
    if isinstance(found, FoundEngine | FoundWeights | FoundCheckpoint):
        known = found.manifest.files
    if others := foreign(directory, known):
        return Verdict(found, True, f"holds {', '.join(others[:3])}, which are not this software's")
    if (owner := builder_of(_becomes(directory))) is not None:
        return Verdict(found, True, f"is being built by {owner}")
    try:
        with unused(directory) as free:
            if not free:
                return Verdict(found, True, "in use")
    except OSError as error:
        return Verdict(found, True, f"cannot be removed: {error.strerror}")
    if isinstance(found, Broken):
        return Verdict(found, False, found.why)
    if isinstance(found, FoundWeights):
        return Verdict(found, False, "no engine that is kept needs it")
    if isinstance(found, FoundCheckpoint):
        return Verdict(found, False, "neither the current revision nor the previous one")
    return Verdict(found, False, f"{GENERATIONS} newer ones of its name are there")


def _becomes(directory: Path) -> Path:
    """The directory whose lock guards this one, which may be what it is left of."""
    temporary = (*UNFINISHED, ASIDE)
    return directory.with_suffix("") if directory.suffix in temporary else directory


def _refuse(owner: str) -> None:
    raise ConfigurationError(f"is being built by {owner}")
