"""What a service loads at its start: from an engine directory, or the best of a model store.

Knows the order of the steps: find, build where nothing is there for this machine, choose, load.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dgemma.compatibility import target_of, why_not
from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.machine import Machine
from dgemma.profiles.builder import Builder
from dgemma.profiles.first_start import build_first, build_kernels
from dgemma.profiles.inventory import FoundEngine, FoundWeights, Inventory, SetAside, read
from dgemma.profiles.layout import ENGINE, directories
from dgemma.profiles.locks import InUse
from dgemma.profiles.profile import (
    KERNELS,
    NATIVE,
    OTHER,
    Profile,
    distance,
    liking,
    profiles,
    weights_of,
)
from dgemma.profiles.selection import (
    Refusal,
    Selection,
    empty,
    is_meant,
    is_preferred,
    named,
    open_first,
    open_named,
    said,
)

logger = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Wanted:
    """What the operator asks for, and what the checkpoint does."""

    place: Path  # an engine directory or a model store
    profile: str | None  # NIM_MODEL_PROFILE
    geometry: Geometry
    content: str | None = None  # of the checkpoint; None: any weights of that geometry
    preferred: str | None = None  # a precision or a profile, that goes first

    def prefers(self, profile: Profile) -> bool:
        return is_preferred(profile, self.place, self.preferred)


def open_wanted(
    wanted: Wanted,
    load: Callable[[Profile], Loaded],
    in_use: InUse,
    machine: Callable[[], Machine] = Machine.here,
    builder: Callable[[], Builder | None] = Builder.here,
) -> tuple[Loaded, Selection]:
    """Load what is wanted, and hold its directories `in_use`.

    An engine that the operator named is never replaced by another; one of a store may be, and the
    selection says so. Raises ConfigurationError where nothing can be loaded.
    """

    def held(profile: Profile) -> Loaded:
        _hold(profile, in_use)
        try:
            return load(profile)
        except BaseException:
            in_use.close()
            raise

    if (wanted.place / ENGINE).exists():
        return _open_directory(wanted, held)
    here = machine()
    target = target_of(here)
    inventory, found = _look(wanted, here)
    if wanted.profile is not None:
        chosen = named(found, wanted.place, wanted.profile)
        return open_named(chosen, "named by the operator", found, held)
    refused: list[Refusal] = []
    if not any(p.refusal is None and _is_enough(p, wanted, target) for p in found):
        refused = build_first(inventory, here, wanted.geometry, builder(), wanted.content)
        inventory, found = _look(wanted, here)
    refused += _missed(inventory, found, wanted, here)
    if not found and not refused:
        raise ConfigurationError(empty(wanted.place))
    in_turn = _with_kernels(inventory, found, wanted, here, builder)
    return open_first(in_turn, target, held, refused)


def _is_enough(profile: Profile, wanted: Wanted, target: str) -> bool:
    """Whether nothing better needs to be built before it is served.

    That is so of kernels only where the operator names them, for a plan may be faster.
    """
    away = distance(profile.engine.manifest, target)
    if away == KERNELS and wanted.preferred is not None:
        return is_meant(profile, wanted.place, wanted.preferred)
    return away == NATIVE


def _with_kernels(
    inventory: Inventory,
    found: list[Profile],
    wanted: Wanted,
    here: Machine,
    builder: Callable[[], Builder | None],
) -> Iterator[Profile]:
    """`found` one by one; behind what was compiled for this GPU an engine for any, built by then.

    Whoever asks for the next one was not served by those before it.
    """
    target = target_of(here)
    away = [distance(profile.engine.manifest, target) for profile in found]
    runs = [profile.refusal is None for profile in found]
    lacks = here.gpu is not None and (KERNELS, True) not in zip(away, runs, strict=True)
    tried = False
    for index, profile in enumerate(found):
        yield profile
        tried |= (away[index], runs[index]) == (NATIVE, True)
        if tried and lacks and NATIVE not in away[index + 1 :]:
            lacks = False
            for refusal in build_kernels(
                *(inventory, here, wanted.geometry, builder(), wanted.content)
            ):
                logger.error("%s: %s", refusal.name, refusal.reason)
            known = {p.engine.directory for p in found}
            for made in _look(wanted, here)[1]:
                if made.engine.directory not in known:
                    yield made


def _open_directory(wanted: Wanted, load: Callable[[Profile], Loaded]) -> tuple[Loaded, Selection]:
    engine = read(wanted.place)
    if not isinstance(engine, FoundEngine):
        raise ConfigurationError(getattr(engine, "why", f"{wanted.place}: no engine"))
    beside = [read(path) for path in directories(wanted.place.parent, depth=1)]
    stores = [found for found in beside if isinstance(found, FoundWeights)]
    stores.sort(key=lambda store: -store.written)
    profile = Profile(engine, next(iter(weights_of(engine, stores))), None)
    if wanted.profile is not None:
        named([profile], wanted.place.parent, wanted.profile)
    return load(profile), said(Selection.of(profile, "in the directory that the operator named"))


def _look(wanted: Wanted, machine: Machine) -> tuple[Inventory, list[Profile]]:
    """What there is, and the profiles in the order in which they are tried."""
    inventory = Inventory.of(wanted.place)
    found = profiles(inventory, machine, wanted.geometry, wanted.content)
    return inventory, sorted(found, key=lambda profile: not wanted.prefers(profile))


def _missed(
    inventory: Inventory, found: list[Profile], wanted: Wanted, here: Machine
) -> list[Refusal]:
    """What may have been served here, were it there, whole and not set aside."""
    target = target_of(here)
    first = next((p for p in found if p.refusal is None), None)

    def would_be_first(aside: SetAside) -> bool:
        made = aside.manifest
        if distance(made, target) == OTHER or why_not(made, here) is not None:
            return False
        if first is None:
            return True
        other = first.engine.manifest
        liked = wanted.preferred in (made.precision, aside.name)
        mine = distance(made, target), not liked, liking(made, target), -aside.written
        return mine < (
            distance(other, target),
            not wanted.prefers(first),
            liking(other, target),
            -first.engine.written,
        )

    broken = [b for b in inventory.broken if not b.unfinished]
    asides = [b for b in inventory.set_aside if would_be_first(b)]
    refused = [Refusal(b.name, b.why) for b in asides]
    refused += [Refusal(b.name, b.why) for b in broken if not isinstance(b, SetAside)]
    mine = (p for p in found if distance(p.engine.manifest, target) < OTHER)
    known = any(wanted.prefers(p) for p in mine)
    known |= any(wanted.preferred in (b.manifest.precision, b.name) for b in asides)
    if wanted.preferred is not None and not known:
        reason = f"{wanted.place} has no engine of it for {target}"
        refused.insert(0, Refusal(wanted.preferred, reason))
    return refused


def _hold(profile: Profile, in_use: InUse) -> None:
    for found in (profile.engine, profile.weights):
        if found is not None:
            try:
                in_use.add(found.directory)
            except OSError as error:
                in_use.close()
                raise ConfigurationError(f"{found.directory}: cannot be read: {error}") from None
