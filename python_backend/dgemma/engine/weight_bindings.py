"""Which weights an engine takes, and whether a store holds them as it does.

Knows how a plan and a store spell the same bytes; reads neither.
"""

from __future__ import annotations

from pathlib import Path

from dgemma.engine.graph import ENTERING, ROW_INPUTS, pool_names
from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.manifest import Binding, Manifest
from dgemma.precision import TensorSpec
from dgemma.store_manifest import StoreManifest

# A plan counts the values of these, a store the bytes that hold two of them.
_PACKED = ("I4", "F4")


def pass_inputs(geometry: Geometry) -> frozenset[str]:
    """The names of what changes from pass to pass; every other input is a weight."""
    return frozenset((*ROW_INPUTS, "room", *pool_names(geometry)))


def weight_inputs(manifest: Manifest) -> list[Binding]:
    """The plan's inputs that a store holds, in the plan's order."""
    known = {*pass_inputs(manifest.geometry), ENTERING}
    return [b for b in manifest.bindings if b.is_input and b.name not in known]


def stored_as(binding: Binding) -> TensorSpec:
    """How a store lays out what a plan takes as `binding`."""
    if binding.dtype not in _PACKED:
        return TensorSpec(binding.dtype, binding.shape)
    *rest, columns = binding.shape
    return TensorSpec("U8", (*rest, columns // 2))


def weights_wanted(path: Path, manifest: Manifest) -> dict[str, TensorSpec]:
    """What a store has to hold: what a plan takes, or kernels, which take all of the network's.

    `path` is the manifest, for the ConfigurationError of a plan that is not what it says.
    """
    if not manifest.graph:
        from dgemma.model.checkpoint import parameter_shapes  # brings torch, which takes seconds

        return manifest.policy.tensors(parameter_shapes(manifest.geometry))
    for binding in weight_inputs(manifest):
        if min(binding.shape, default=0) < 0:
            raise ConfigurationError(
                f"{path}: input {binding.name} is no weight: its shape is {list(binding.shape)}; "
                "build the engine again with this version of the software"
            )
    return {binding.name: stored_as(binding) for binding in weight_inputs(manifest)}


def check_weights(path: Path, manifest: Manifest, store: Path, held: StoreManifest) -> None:
    """Raise ConfigurationError unless `store` has every weight of the engine, in type and shape.

    `path` is the engine's manifest; the first weight that differs is named.
    """
    what = "plan" if manifest.graph else "engine"
    for name, wanted in weights_wanted(path, manifest).items():
        record = held.tensors.get(name)
        if record is None or record.spec != wanted:
            found = "is not there" if record is None else f"is {_spelt(record.spec)}"
            raise ConfigurationError(
                f"{store}: {name} {found}, the {what} of {path} takes {_spelt(wanted)}; "
                "build both with the same version of the software"
            )


def _spelt(spec: TensorSpec) -> str:
    return f"{spec.dtype} {list(spec.shape)}"
