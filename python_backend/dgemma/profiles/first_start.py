"""Builds the engine that a store lacks for this machine, where the builder is installed.

Knows what to ask the builder for. Only weights that are in the store are built for, so that a
directory that is no model store stays as it is.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dgemma.compatibility import target_of
from dgemma.geometry import Geometry
from dgemma.machine import Machine
from dgemma.profiles.builder import Builder, BuildFailed
from dgemma.profiles.inventory import NAME, FoundWeights, Inventory
from dgemma.profiles.layout import engine_directory
from dgemma.profiles.profile import preference
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

    `geometry` and `content` are those of the checkpoint to be served; None: any.

    The reasons why not, for each that could not be built before one was; empty also where the
    store has no weights.
    """
    stores = [
        store
        for store in inventory.weights
        if store.manifest.geometry == geometry and content in (None, store.manifest.source)
    ]
    if not stores:
        return []
    target, root = target_of(machine), inventory.root
    missing = f"{root} has no engine for {target}"
    if builder is None:
        return [Refusal(target, f"{missing}, and dgemma-build is not installed here to make one")]
    if not os.access(root, os.W_OK):
        return [Refusal(target, f"{missing}, and is read only; build one with dgemma-build")]
    try:
        entry = _entry(builder, target)
    except BuildFailed as error:
        return [Refusal(target, f"{missing}, and none can be built here: {error}")]
    refused: list[Refusal] = []
    for store in sources(stores, target):
        if store.manifest.precision not in entry["precisions"]:
            continue
        precision = store.manifest.precision
        name = NAME.format(flavour=entry["flavour"], target=target, precision=precision)
        out = _place(inventory, store, machine, entry)
        if any(_kind(f.directory.with_suffix("")) == _kind(out) for f in inventory.set_aside):
            continue  # of that target, precision and version; the inventory says why
        logger.warning("%s; building %s from %s", missing, name, store.directory)
        try:
            _build(builder, store, entry, out)
            return refused
        except BuildFailed as error:
            logger.error("profile %s cannot be built: %s", name, error)
            refused.append(Refusal(name, f"cannot be built: {error}"))
    return refused


def _entry(builder: Builder, target: str) -> Mapping[str, Any]:
    """What the builder knows of a target that it can build here; BuildFailed says why it cannot."""
    targets = json.loads(builder.output("targets", "--json"))
    found: Mapping[str, Any] | None = next((t for t in targets if t["name"] == target), None)
    if found is None:
        known = ", ".join(t["name"] for t in targets)
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
