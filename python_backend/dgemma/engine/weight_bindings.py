"""Which of a plan's inputs are weights, and whether a store holds them as the plan takes them.

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


def check_weights(path: Path, manifest: Manifest, store: Path, held: StoreManifest) -> None:
    """Raise ConfigurationError unless `store` has every weight of the plan, in type and shape.

    `path` is the plan's manifest; the first weight that differs is named.
    """
    for binding in weight_inputs(manifest):
        if min(binding.shape, default=0) < 0:
            raise ConfigurationError(
                f"{path}: input {binding.name} is no weight: its shape is {list(binding.shape)}; "
                "build the engine again with this version of the software"
            )
        record = held.tensors.get(binding.name)
        wanted = stored_as(binding)
        if record is None or record.spec != wanted:
            found = "is not there" if record is None else f"is {_spelt(record.spec)}"
            raise ConfigurationError(
                f"{store}: {binding.name} {found}, the plan of {path} takes {_spelt(wanted)}; "
                "build both with the same version of the software"
            )


def _spelt(spec: TensorSpec) -> str:
    return f"{spec.dtype} {list(spec.shape)}"
