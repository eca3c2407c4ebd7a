"""Builds an engine directory: graph, weight store and manifest.

Knows the order of the steps and when nothing is to be done; each step lives in its own module.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.manifest import FILE_NAME, FileRecord, Manifest, sha256
from dgemma.model.checkpoint import Checkpoint, load_tensors, parameter_shapes
from dgemma_build.cpu import attach_weights
from dgemma_build.definition import definition_digest
from dgemma_build.emit import emit
from dgemma_build.store import write_store

GRAPH, WEIGHTS = "graph.onnx", "weights.safetensors"
# On a CPU the detour over gathered tokens costs more than this many tiny experts computed for every
# token, and so small a network is bound by the number of its operations.
FEW_EXPERTS = 8
SUPPORTED = {"cpu": {"fp32": torch.float32}}

Progress = Callable[[str, int, int], None]  # what, done, total


@dataclass(frozen=True)
class Built:
    """What `build_engine` made, or found."""

    manifest: Manifest
    up_to_date: bool


def build_engine(
    checkpoint: Path,
    target: str,
    precision: str,
    out: Path,
    progress: Progress = lambda what, done, total: None,
) -> Built:
    """Make `out` an engine of `checkpoint`; nothing is done where it already is one.

    Raises ConfigurationError for a target, precision or checkpoint that cannot be built. Files
    appear under their names only when all of them are complete.
    """
    dtype = _supported(target, precision)
    geometry = Geometry.from_checkpoint(checkpoint)
    tensors = Checkpoint(checkpoint)
    source = _source_digest(tensors)
    if (found := _existing(out, target, precision, source)) is not None:
        return Built(found, up_to_date=True)
    shapes = parameter_shapes(geometry)
    work = out.with_name(out.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        total = sum(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize
        done = 0

        def advance(size: int) -> None:
            nonlocal done
            done += size
            progress("weights", done, total)

        loaded = load_tensors(tensors, geometry)
        places = write_store(work / WEIGHTS, shapes, dtype, loaded, advance)
        progress("graph", 0, 1)
        graph = emit(geometry, dtype, fused=geometry.num_experts <= FEW_EXPERTS)
        attach_weights(graph, WEIGHTS, places)
        onnx.save(graph, work / GRAPH)
        progress("graph", 1, 1)
        files = {name: FileRecord.of(work / name) for name in (GRAPH, WEIGHTS)}
        versions = {name: importlib.metadata.version(name) for name in ("torch", "onnx")}
        manifest = Manifest(target, precision, geometry, source, GRAPH, WEIGHTS, files, versions)
        manifest.write(work)
        _replace(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Built(manifest, up_to_date=False)


def _supported(target: str, precision: str) -> torch.dtype:
    if target not in SUPPORTED:
        raise ConfigurationError(
            f"target {target!r} cannot be built; known: {', '.join(SUPPORTED)}"
        )
    if precision not in SUPPORTED[target]:
        known = ", ".join(SUPPORTED[target])
        raise ConfigurationError(
            f"precision {precision!r} is not built for {target}; known: {known}"
        )
    return SUPPORTED[target][precision]


def _source_digest(checkpoint: Checkpoint) -> str:
    """Changes with the checkpoint's content and with the network's definition."""
    digest = hashlib.sha256()
    files = {checkpoint.directory / "config.json", *checkpoint.files.values()}
    for path in sorted(files):
        digest.update(f"{path.name} {sha256(path)}\n".encode())
    digest.update(definition_digest().encode())
    return digest.hexdigest()


def _existing(out: Path, target: str, precision: str, source: str) -> Manifest | None:
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
    same = (manifest.target, manifest.precision, manifest.source) == (target, precision, source)
    return manifest if same else None


def _replace(work: Path, out: Path) -> None:
    """Put a finished directory in place; an older engine is gone only once the new one is whole."""
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    work.rename(out)
    shutil.rmtree(old, ignore_errors=True)
