"""Builds an engine directory: what a runtime executes, weights and manifest.

Knows the order of the steps and when nothing is to be done; each step lives in its own module.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.manifest import FILE_NAME, FileRecord, Manifest
from dgemma.model.checkpoint import Checkpoint
from dgemma.precision import Policy, policy_of
from dgemma.weight_store import WeightStore
from dgemma_build import cpu, precision_pass
from dgemma_build.definition import definition_digest
from dgemma_build.parts import Parts, Progress
from dgemma_build.quantize.run import quantize_checkpoint
from dgemma_build.targets import load_targets, select

# What decides a quantised cpu engine besides the network's definition.
_BUILDERS = (cpu, precision_pass)


@dataclass(frozen=True)
class Built:
    """What was made, or found."""

    manifest: Manifest
    up_to_date: bool


@dataclass(frozen=True)
class _Wanted:
    """What an engine is asked to be; another one in its place is replaced."""

    target: str
    precision: str
    policy: Policy
    geometry: Geometry
    source: str

    def is_met_by(self, manifest: Manifest) -> bool:
        return all(getattr(manifest, name) == value for name, value in vars(self).items())


def build_engine(
    checkpoint: Path,
    target: str,
    precision: str,
    out: Path,
    progress: Progress = lambda what, done, total: None,
) -> Built:
    """Make `out` an engine of `checkpoint`; nothing is done where it already is one.

    A precision other than the checkpoint's own goes by way of the weight store `out.store`, which
    is kept: the next engine of that precision is built from it. Raises ConfigurationError for a
    target, precision or checkpoint that cannot be built. Files appear under their names only when
    all of them are complete.
    """
    _check_supported(target, precision)
    if precision != "fp32":
        store = out.with_name(out.name + ".store")
        quantize_checkpoint(checkpoint, precision, store, progress=progress)
        return build_from_store(store, target, precision, out, progress)
    geometry = Geometry.from_checkpoint(checkpoint)
    tensors = Checkpoint(checkpoint)
    files = {checkpoint / "config.json", *tensors.files.values()}
    contents = sorted((path.name, FileRecord.of(path).sha256) for path in files)
    wanted = _Wanted(target, precision, policy_of(precision), geometry, _digest(str(contents)))
    return _build(out, wanted, lambda work: cpu.from_checkpoint(tensors, geometry, work, progress))


def build_from_store(
    store: Path,
    target: str,
    precision: str | None,
    out: Path,
    progress: Progress = lambda what, done, total: None,
) -> Built:
    """Make `out` an engine of a weight store; without `precision`, of the one it holds.

    Raises ConfigurationError for a store that is not whole or holds another precision.
    """
    weights = WeightStore.open(store)
    held = weights.manifest
    held.expect(store, precision=precision)
    _check_supported(target, held.precision)
    source = _digest(held.source + held.recipe)
    wanted = _Wanted(target, held.precision, held.policy, held.geometry, source)
    return _build(out, wanted, lambda work: cpu.from_store(weights, work, progress))


def _check_supported(target: str, precision: str) -> None:
    found = select(load_targets(), target)
    if precision not in found.precisions:
        known = ", ".join(found.precisions)
        raise ConfigurationError(
            f"precision {precision!r} is not built for {target}; known: {known}"
        )
    if found.flavour != "onnxruntime":
        raise ConfigurationError(
            f"target {target!r} is compiled by {found.flavour}, and only targets of onnxruntime "
            "can be built by this version: cpu"
        )


def _digest(weights: str) -> str:
    """Changes with the weights' own digest and with what makes an engine of them."""
    digest = hashlib.sha256((weights + definition_digest()).encode())
    for module in _BUILDERS:
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()


def _build(out: Path, wanted: _Wanted, make: Callable[[Path], Parts]) -> Built:
    """`make` fills an empty directory, which takes its place once it is whole."""
    if (found := _existing(out, wanted)) is not None:
        return Built(found, up_to_date=True)
    work = out.with_name(out.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        parts = make(work)
        names = (parts.graph, *parts.weights, *parts.others)
        manifest = Manifest(
            **vars(wanted),
            runtime=parts.runtime,
            graph=parts.graph,
            weights=parts.weights,
            bindings=parts.bindings,
            files={name: FileRecord.of(work / name) for name in names},
            versions={name: importlib.metadata.version(name) for name in ("torch", "onnx")},
        )
        manifest.write(work)
        _replace(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Built(manifest, up_to_date=False)


def _existing(out: Path, wanted: _Wanted) -> Manifest | None:
    """The manifest in `out` where it is this very engine, whole; None otherwise."""
    if not (out / FILE_NAME).exists():
        if out.exists() and any(out.iterdir()):
            raise ConfigurationError(f"{out}: exists and holds no engine; choose another --out")
        return None
    try:
        manifest = Manifest.read(out)
        manifest.verify(out)
    except ConfigurationError:
        return None
    return manifest if wanted.is_met_by(manifest) else None


def _replace(work: Path, out: Path) -> None:
    """Put a finished directory in place; an older engine is gone only once the new one is whole."""
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    work.rename(out)
    shutil.rmtree(old, ignore_errors=True)
