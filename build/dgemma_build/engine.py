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
from typing import Any

from dgemma.checkpoint_manifest import content_digest
from dgemma.engine.kernel_sources import sources_digest
from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.machine import TORCH
from dgemma.manifest import FILE_NAME, Manifest
from dgemma.model.checkpoint import Checkpoint
from dgemma.precision import Policy, policy_of
from dgemma.profiles.locks import building
from dgemma.sealed import FileRecord
from dgemma.store_manifest import StoreManifest
from dgemma.targets import Target, load_targets, select
from dgemma.weight_store import WeightStore
from dgemma_build import (
    any_gpu,
    chain,
    cpu,
    emit_tail,
    gpu,
    in_turn,
    index_graph,
    meetings,
    precision_pass,
    profiles,
)
from dgemma_build import compile as compiler
from dgemma_build.definition import definition_digest
from dgemma_build.envelope import Envelope
from dgemma_build.flavours import FLAVOURS
from dgemma_build.parts import Parts, Progress
from dgemma_build.quantize.run import quantize_checkpoint

# What decides an engine besides the network's definition.
_BUILDERS = (
    *(compiler, chain, cpu, gpu, in_turn, index_graph, meetings, precision_pass, profiles),
    *emit_tail.MODULES,
)
_NO_PLAN = (
    "rows, context and weights inside are those of a plan; an engine for {target} has none, and "
    "takes any number of rows and tokens"
)


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
    checkpoint: str | None = None

    def is_met_by(self, manifest: Manifest) -> bool:
        return all(getattr(manifest, name) == value for name, value in vars(self).items())


def build_engine(
    checkpoint: Path,
    target: str,
    precision: str,
    out: Path,
    progress: Progress = lambda what, done, total: None,
    *,
    policy: str | None = None,
    targets: Path | None = None,
) -> Built:
    """Make `out` an engine of `checkpoint`; nothing is done where it already is one.

    A precision other than the checkpoint's own goes by way of the weight store `out.store`, which
    is kept: the next engine of that precision is built from it. Raises ConfigurationError for a
    target, precision or checkpoint that cannot be built. Files appear under their names only when
    all of them are complete.
    """
    found = _supported(target, precision, targets)
    if found.flavour == TORCH:
        geometry, rules = Geometry.from_checkpoint(checkpoint), policy_of(precision, policy)
        return build_plan(geometry, target, precision, out, progress, policy=rules, targets=targets)
    if found.has_plan:
        raise ConfigurationError(
            f"a plan for {target} does not depend on a checkpoint; build it with --geometry, and "
            f"the weights with `dgemma-build quantize --precision {precision}`"
        )
    if precision != "fp32":
        store = out.with_name(out.name + ".store")
        quantize_checkpoint(checkpoint, precision, store, policy, progress)
        return build_from_store(store, target, precision, out, progress, targets=targets)
    geometry = Geometry.from_checkpoint(checkpoint)
    tensors = Checkpoint(checkpoint)
    files = {checkpoint / "config.json", *tensors.files.values()}
    content = content_digest({path.name: FileRecord.of(path).sha256 for path in files})
    rules = policy_of(precision, policy)
    wanted = _Wanted(target, precision, rules, geometry, _digest(content), content)
    return _build(
        out,
        wanted,
        progress,
        lambda work: cpu.from_checkpoint(tensors, geometry, work, progress),
    )


def build_from_store(
    store: Path,
    target: str,
    precision: str | None,
    out: Path,
    progress: Progress = lambda what, done, total: None,
    *,
    max_rows: int | None = None,
    max_context: int | None = None,
    targets: Path | None = None,
) -> Built:
    """Make `out` an engine of a weight store; without `precision`, of the one it holds.

    An engine for GPUs takes the store's geometry and policy and none of its weights, and `max_rows`
    and `max_context` as `build_plan` does. Raises ConfigurationError for a store that is not whole,
    to the last bit where its weights are taken, or holds another precision.
    """
    held = StoreManifest.read(store)
    held.expect(store, precision=precision)
    if _supported(target, held.precision, targets).flavour != "onnxruntime":
        return build_plan(
            *(held.geometry, target, held.precision, out, progress),
            policy=held.policy,
            max_rows=max_rows,
            max_context=max_context,
            targets=targets,
        )
    if (max_rows, max_context) != (None, None):
        raise ConfigurationError(
            f"rows and context are those of a plan; an engine for {target} takes any number"
        )
    weights = WeightStore.open(store, deep=True)
    source = _digest(held.content)
    wanted = _Wanted(target, held.precision, held.policy, held.geometry, source, held.source)
    return _build(out, wanted, progress, lambda work: cpu.from_store(weights, work, progress))


def build_plan(
    geometry: Geometry,
    target: str,
    precision: str,
    out: Path,
    progress: Progress = lambda what, done, total: None,
    *,
    policy: Policy | None = None,
    max_rows: int | None = None,
    max_context: int | None = None,
    targets: Path | None = None,
    constants: WeightStore | None = None,
) -> Built:
    """Make `out` an engine for GPUs of a geometry, without weights: those are any store's of it.

    Passes of a plan have up to `max_rows` rows, two for each slot, over slots of `max_context`
    tokens; both are the target's where they are not given, as `policy` is the precision's. With
    `constants` the plan holds the weights of that store and serves no other. An engine of kernels
    is no plan and takes none of the three. Raises ConfigurationError for a target that has no GPU
    or cannot be compiled for here.
    """
    found = _supported(target, precision, targets)
    if found.flavour == "onnxruntime":
        raise ConfigurationError(
            f"an engine for {target} holds its weights; name a --checkpoint or a --store"
        )
    policy, held = policy or policy_of(precision), ""
    if found.flavour == TORCH:
        if (max_rows, max_context, constants) != (None, None, None):
            raise ConfigurationError(_NO_PLAN.format(target=target))
        wanted = _Wanted(target, precision, policy, geometry, sources_digest())
        return _build(out, wanted, progress, lambda work: any_gpu.parts())
    if constants is not None:
        constants.manifest.expect(constants.directory, precision=precision)
        policy = constants.manifest.policy
        held = constants.manifest.content
    rows = max_rows or found.max_rows
    context = min(max_context or found.max_context, geometry.max_position_embeddings)
    envelope = Envelope(max(1, rows // 2), rows, context)
    version = getattr(FLAVOURS[found.flavour].load(), "__version__", "")
    source = _digest(f"{found.flavour} {version} {found.compute_capability} {envelope} {held}")
    wanted = _Wanted(target, precision, policy, geometry, source)
    cache = out.parent / "graphs"
    return _build(
        out,
        wanted,
        progress,
        lambda work: gpu.from_geometry(
            geometry, policy, found, envelope, cache, work, progress, constants
        ),
    )


def build_constant_plan(
    checkpoint: Path | None,
    store: Path | None,
    target: str,
    precision: str | None,
    out: Path,
    progress: Progress = lambda what, done, total: None,
    *,
    policy: str | None = None,
    **options: Any,
) -> Built:
    """`build_plan` with the weights of a store inside, or of a checkpoint by way of one.

    The store stays needed: the tail reads its embedding. `policy` is by name and goes with a
    checkpoint. Raises ConfigurationError as `build_from_store` does.
    """
    if store is None:
        assert checkpoint is not None, "one of both"
        precision, store = precision or "bf16", out.with_name(out.name + ".store")
        if _supported(target, precision, options.get("targets")).flavour == TORCH:
            raise ConfigurationError(_NO_PLAN.format(target=target))
        quantize_checkpoint(checkpoint, precision, store, policy, progress)
    weights = WeightStore.open(store, deep=True)
    held = weights.manifest
    held.expect(store, precision=precision)
    return build_plan(
        held.geometry, target, held.precision, out, progress, constants=weights, **options
    )


def _supported(target: str, precision: str, extra: Path | None = None) -> Target:
    found = select(load_targets(extra), target)
    if precision not in found.precisions:
        known = ", ".join(found.precisions)
        raise ConfigurationError(
            f"precision {precision!r} is not built for {target}; known: {known}"
        )
    return found


def builder_digest(flavour: str) -> str:
    """Changes with whatever would make another engine of the same weights."""
    return sources_digest() if flavour == TORCH else _digest("")


def _digest(weights: str) -> str:
    """Changes with the weights' own digest and with what makes an engine of them."""
    digest = hashlib.sha256((weights + definition_digest()).encode())
    for module in _BUILDERS:
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()


def _build(out: Path, wanted: _Wanted, progress: Progress, make: Callable[[Path], Parts]) -> Built:
    """`make` fills an empty directory, which takes its place once it is whole.

    Of two processes that build the same the second waits, and finds what the first has made.
    """
    if (found := _existing(out, wanted)) is not None:
        return Built(found, up_to_date=True)
    with building(out, lambda owner: progress(f"waiting for {owner}", 0, 1)):
        if (found := _existing(out, wanted)) is not None:
            return Built(found, up_to_date=True)
        return Built(_made(out, wanted, make), up_to_date=False)


def _made(out: Path, wanted: _Wanted, make: Callable[[Path], Parts]) -> Manifest:
    work = out.with_name(out.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        parts = make(work)
        plans = tuple(link.file for link in parts.chain) or (parts.graph,)
        names = filter(None, (*plans, *parts.weights, *parts.tail, parts.index, *parts.others))
        manifest = Manifest(
            **vars(wanted),
            runtime=parts.runtime,
            graph=parts.graph,
            weights=parts.weights,
            bindings=parts.bindings,
            profiles=parts.profiles,
            tail=parts.tail,
            index=parts.index,
            constants=parts.constants,
            chain=parts.chain,
            files={name: FileRecord.of(work / name) for name in names},
            versions={name: importlib.metadata.version(name) for name in parts.tools},
        )
        manifest.write(work)
        _replace(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return manifest


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
