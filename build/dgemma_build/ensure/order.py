"""What is to be built here: options, and what machine and checkpoint say where they are left open.

Knows preferences and names of directories; builds nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from dgemma.checkpoint_manifest import content_of
from dgemma.compatibility import target_of, why_no_kernels
from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.machine import TORCH, Machine
from dgemma.model.checkpoint import Checkpoint
from dgemma.profiles.layout import engine_directory
from dgemma.profiles.profile import preference
from dgemma.targets import Target, load_targets, select
from dgemma_build import any_gpu
from dgemma_build.engine import builder_digest
from dgemma_build.quantize.layouts import layout_of

AUTO = "auto"
WEIGHTS = "weights"  # the directory of all weight stores


@dataclass(frozen=True)
class Order:
    """What an operator asks for. `slots` and `context` are what the service is to run with."""

    root: Path  # the model store
    checkpoint: Path
    target: str = AUTO
    precision: str = AUTO
    slots: int | None = None
    context: int | None = None
    targets: Path | None = None


@dataclass(frozen=True)
class Plan:
    """What is to be there afterwards; `rows` and `context` are those of a GPU's engine."""

    order: Order
    target: Target
    precision: str
    geometry: Geometry
    runtime: str  # flavour and version
    rows: int | None
    context: int | None
    weights: Path | None  # None: the engine is made of the checkpoint itself

    @property
    def on_gpu(self) -> bool:
        return self.target.on_gpu

    def engine(self, content: str) -> Path:
        """Its place; `content` is that of the checkpoint, which a plan for GPUs does not hold.

        Whatever would make another engine is in the name, so that the one before stays.
        """
        held = f"{self.rows} {self.context}" if self.on_gpu else content
        return engine_directory(
            self.order.root,
            self.target.name,
            self.precision,
            self.runtime,
            self.geometry,
            held + builder_digest(self.target.flavour),
        )


def planned(order: Order, machine: Machine) -> Plan:
    """ConfigurationError where that cannot be built, or not of this checkpoint."""
    name = target_of(machine) if order.target == AUTO else order.target
    target = select(load_targets(order.targets), name)
    precision = _precision(order, target, machine)
    geometry = Geometry.from_checkpoint(order.checkpoint)
    version = _version(target, machine)
    rows = context = None
    if target.has_plan:
        rows = max(target.max_rows, 2 * (order.slots or 0))
        context = max(target.max_context, order.context or 0)
        context = min(context, geometry.max_position_embeddings)
    weights = None
    if precision != "fp32":
        weights = order.root / WEIGHTS / f"{precision}-{revision(order.checkpoint)}"
    runtime = f"{target.flavour}-{version}"
    return Plan(order, target, precision, geometry, runtime, rows, context, weights)


def revision(checkpoint: Path) -> str:
    """Tells one checkpoint from another without reading its weights; 12 digits."""
    if (content := content_of(checkpoint)) is not None:
        return content[:12]
    files = sorted({checkpoint / "config.json", *Checkpoint(checkpoint).files.values()})
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:12]


def _version(target: Target, machine: Machine) -> str:
    """Of what executes its engines."""
    if target.flavour == TORCH:  # nothing of it is needed to build one
        return any_gpu.parts().runtime.version
    version = machine.runtimes.get(target.flavour)
    if version is None:
        why = machine.broken.get(target.flavour, "not installed")
        raise ConfigurationError(
            f"{target.name}: needs {target.flavour}, which does not import: {why}"
        )
    return version


def _preferred(target: Target, machine: Machine) -> str:
    """Of an engine for any GPU what this machine's would have compiled, among what it can run."""
    if target.flavour != TORCH:
        return min(target.precisions, key=lambda p: preference(target.name, p))
    able = [p for p in target.precisions if why_no_kernels(machine, p) is None]
    return min(able or target.precisions, key=lambda p: preference(target_of(machine), p))


def _precision(order: Order, target: Target, machine: Machine) -> str:
    stored = layout_of(order.checkpoint)
    if order.precision != AUTO:
        chosen = order.precision
    elif stored is not None:
        chosen = stored.format  # there is no other way to go on from it
    else:
        chosen = _preferred(target, machine)
    if chosen not in target.precisions:
        known = ", ".join(target.precisions)
        raise ConfigurationError(
            f"precision {chosen!r} is not built for {target.name}; known: {known}"
        )
    return chosen
