"""Back from a machine's engine to the one that was served before it, and back again.

Knows which engine is set aside and which is taken back; the checkpoint stays the same, and so do
the engines of other machines that share the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dgemma.checkpoint_manifest import content_of
from dgemma.compatibility import target_of
from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.machine import Machine
from dgemma.profiles.aside import Aside, set_aside, take_back
from dgemma.profiles.inventory import Inventory
from dgemma.profiles.locks import building
from dgemma.profiles.pointer import current_of
from dgemma.profiles.profile import OTHER, Profile, distance, profiles
from dgemma.profiles.selection import is_preferred


def roll_engine_back(
    root: Path, here: Machine, checkpoint: Path | None = None, preferred: str | None = None
) -> str:
    """What is served at the next start; `checkpoint` and `preferred` are what the service is told.

    ConfigurationError where there is nothing to go back to.
    """
    inventory = Inventory.of(root)
    for found in inventory.set_aside:
        mine = distance(found.manifest, target_of(here)) < OTHER
        if mine and _by_operator(found.directory):
            name = found.directory.with_suffix("")
            with building(name, _refuse):
                take_back(found.directory, name)
            return f"{found.name} in {name}"
    fitting = _fitting(inventory, here, current_of(root, checkpoint).checkpoint)
    fitting.sort(key=lambda profile: not is_preferred(profile, root, preferred))
    served, before = _two(fitting, root)
    name = served.engine.directory
    with building(name, _refuse):
        set_aside(name, Aside.of("operator", f"rolled back to {before.engine.directory.name}"))
    return f"{before.name} in {before.engine.directory}"


def _fitting(inventory: Inventory, here: Machine, checkpoint: Path | None) -> list[Profile]:
    geometry = content = None
    if checkpoint is not None:
        geometry, content = Geometry.from_checkpoint(checkpoint), content_of(checkpoint)
    return [p for p in profiles(inventory, here, geometry, content) if p.refusal is None]


def _two(fitting: Sequence[Profile], root: Path) -> tuple[Profile, Profile]:
    """What is served, and what would be without its engine."""
    for other in fitting[1:]:
        if other.engine.directory != fitting[0].engine.directory:
            return fitting[0], other
    raise ConfigurationError(f"{root}: there is no other engine for this machine")


def _by_operator(directory: Path) -> bool:
    return Aside.read(directory).by == "operator"


def _refuse(owner: str) -> None:
    raise ConfigurationError(f"the engine is being built by {owner}; try again")
