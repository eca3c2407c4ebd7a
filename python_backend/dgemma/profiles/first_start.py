"""Builds the engine that a store lacks for this machine, where the builder is installed.

Knows what to ask the builder for. Only weights that are in the store are built for, so that a
directory that is no model store stays as it is.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgemma.compatibility import ANY_GPU, target_of, why_no_kernels
from dgemma.geometry import Geometry
from dgemma.machine import Machine
from dgemma.profiles.builder import Builder, BuildFailed
from dgemma.profiles.inventory import NAME, FoundWeights, Inventory
from dgemma.profiles.layout import engine_directory
from dgemma.profiles.profile import KERNELS, distance, preference, profiles
from dgemma.profiles.selection import Refusal

logger = logging.getLogger(__name__)


def build_first(
    inventory: Inventory,
    machine: Machine,
    geometry: Geometry,
    builder: Builder | None,
    content: str | None = None,
) -> list[Refusal]:
    """Build what is preferred here among the precisions that the store has weights of.

    Where nothing can be compiled for this machine's GPU, it is the engine for any GPU, unless one
    that fits is there. `geometry` and `content` are those of the checkpoint to be served; None:
    any.

    The reasons why not, for each that could not be built before one was; empty also where the
    store has no weights.
    """
    wanted = _Wanted(inventory, machine, geometry, content)
    return _build_first_of(wanted, builder, wanted.missing, (target_of(machine), ANY_GPU))


def build_kernels(
    inventory: Inventory,
    machine: Machine,
    geometry: Geometry,
    builder: Builder | None,
    content: str | None = None,
) -> list[Refusal]:
    """`build_first` of the engine for any GPU alone, where what was compiled does not load."""
    wanted = _Wanted(inventory, machine, geometry, content)
    return _build_first_of(wanted, builder, f"{inventory.root} has no other engine", (ANY_GPU,))


@dataclass(frozen=True)
class _Wanted:
    """What is looked for in a store, and for what."""

    inventory: Inventory
    machine: Machine
    geometry: Geometry
    content: str | None

    @property
    def missing(self) -> str:
        return f"{self.inventory.root} has no engine for {target_of(self.machine)}"

    @property
    def stores(self) -> list[FoundWeights]:
        """What an engine can be made of, in the order of this machine's preference."""
        mine = (s for s in self.inventory.weights if s.manifest.geometry == self.geometry)
        fitting = [s for s in mine if self.content in (None, s.manifest.source)]
        return sources(fitting, target_of(self.machine))

    @property
    def has_kernels(self) -> bool:
        """Whether an engine for any GPU is there that can be served."""
        found = profiles(self.inventory, self.machine, self.geometry, self.content)
        here = target_of(self.machine)
        return any(
            p.refusal is None and distance(p.engine.manifest, here) == KERNELS for p in found
        )


def _build_first_of(
    wanted: _Wanted, builder: Builder | None, missing: str, targets: Sequence[str]
) -> list[Refusal]:
    """Build for the first of `targets` that can be; why not for those before it."""
    if not wanted.stores:
        return []
    target, root = targets[0], wanted.inventory.root
    if builder is None:
        return [Refusal(target, f"{missing}, and dgemma-build is not installed here to make one")]
    if not os.access(root, os.W_OK):
        return [Refusal(target, f"{missing}, and is read only; build one with dgemma-build")]
    try:
        entries = json.loads(builder.output("targets", "--json"))
    except BuildFailed as error:
        return [Refusal(target, f"{missing}, and none can be built here: {error}")]
    refused: list[Refusal] = []
    for name in targets:
        if name == ANY_GPU and (wanted.machine.gpu is None or wanted.has_kernels):
            continue
        try:
            entry = _entry(entries, name)
        except BuildFailed as error:
            refused.append(Refusal(name, f"{missing}, and none can be built here: {error}"))
            continue
        if _build_for(wanted, builder, entry, missing, refused):
            break
    return refused


def _build_for(
    wanted: _Wanted,
    builder: Builder,
    entry: Mapping[str, Any],
    missing: str,
    refused: list[Refusal],
) -> bool:
    """Whether an engine was built of one of the stores; reasons why not are added to `refused`."""
    target, unsuitable = entry["name"], []
    for store in wanted.stores:
        precision = store.manifest.precision
        name = NAME.format(flavour=entry["flavour"], target=target, precision=precision)
        if precision not in entry["precisions"]:
            unsuitable.append(precision)
            continue
        if target == ANY_GPU and (reason := why_no_kernels(wanted.machine, precision)) is not None:
            refused.append(Refusal(name, reason))
            continue
        out = _place(wanted.inventory, store, wanted.machine, entry)
        asides = (f.directory.with_suffix("") for f in wanted.inventory.set_aside)
        if any(_kind(aside) == _kind(out) for aside in asides):
            continue  # of that target, precision and version; the inventory says why
        logger.warning("%s; building %s from %s", missing, name, store.directory)
        try:
            _build(builder, store, entry, out)
            return True
        except BuildFailed as error:
            logger.error("profile %s cannot be built: %s", name, error)
            refused.append(Refusal(name, f"cannot be built: {error}"))
    if target == ANY_GPU and len(unsuitable) == len(wanted.stores):
        known = " or ".join(entry["precisions"])
        why = f"takes {known} weights, and those of the store are {', '.join(unsuitable)}"
        refused.append(Refusal(target, f"{why}; write them with `dgemma-build quantize`"))
    return False


def _entry(entries: Sequence[Mapping[str, Any]], target: str) -> Mapping[str, Any]:
    """What the builder knows of a target that it can build here; BuildFailed says why it cannot."""
    found: Mapping[str, Any] | None = next((t for t in entries if t["name"] == target), None)
    if found is None:
        known = ", ".join(t["name"] for t in entries)
        raise BuildFailed(f"target {target} is not known; known: {known}")
    if not found["buildable"]:
        raise BuildFailed(found["why_not"])
    return found


def sources(stores: Sequence[FoundWeights], target: str) -> list[FoundWeights]:
    """What an engine would be made of: the newest of each precision, the preferred one first."""
    newest = {s.manifest.precision: s for s in sorted(stores, key=lambda store: store.written)}
    return sorted(newest.values(), key=lambda s: preference(target, s.manifest.precision))


def _place(
    inventory: Inventory, store: FoundWeights, machine: Machine, entry: Mapping[str, Any]
) -> Path:
    manifest, flavour = store.manifest, entry["flavour"]
    # A plan has no weights in it, so one is enough for every revision of them.
    revision = manifest.source if flavour == "onnxruntime" else ""
    return engine_directory(
        inventory.root,
        entry["name"],
        manifest.precision,
        f"{flavour}-{machine.runtimes.get(flavour, '')}",
        manifest.geometry,
        revision,
    )


def _kind(directory: Path) -> str:
    return directory.name.rpartition("-")[0]  # but for its key


def _build(builder: Builder, store: FoundWeights, entry: Mapping[str, Any], out: Path) -> None:
    builder.run(
        "engine",
        *("--store", str(store.directory)),
        *("--target", entry["name"], "--precision", store.manifest.precision),
        *("--out", str(out)),
        say=lambda line: logger.info("building: %s", line),
    )
