"""Graphs that were emitted before, on disk.

Knows when a graph may be used again and when its file is whole; knows nothing of what is in it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import tempfile
from pathlib import Path

import onnx
import torch

from dgemma.geometry import Geometry
from dgemma_build.definition import definition_digest
from dgemma_build.emit import emit

_EXPORTERS = ("torch", "onnx", "onnxscript", "onnx-ir")


def cached_graph(
    geometry: Geometry,
    dtype: torch.dtype,
    cache_dir: Path,
    fused: bool = False,
    shared: bool = False,
) -> onnx.ModelProto:
    """What `emit` gives, from `cache_dir` where it was emitted before.

    A file is named after what its graph was made from and after its own SHA-256, so a damaged one
    is known, and replaced. Files appear under their names only when they are complete, so builds
    may share the directory.
    """
    key = _key(geometry, dtype, fused, shared)
    for path in cache_dir.glob(f"{key}-*.onnx"):
        content = path.read_bytes()
        if path.name == _name(key, content):
            return onnx.load_from_string(content)
        path.unlink(missing_ok=True)
    graph = emit(geometry, dtype, fused, shared)
    cache_dir.mkdir(parents=True, exist_ok=True)
    content = graph.SerializeToString()
    with tempfile.NamedTemporaryFile(dir=cache_dir, suffix=".partial", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, cache_dir / _name(key, content))
        except BaseException:
            os.unlink(file.name)
            raise
    return graph


def _key(geometry: Geometry, dtype: torch.dtype, fused: bool, shared: bool) -> str:
    made_from = {
        "geometry": geometry.to_dict(),
        "dtype": str(dtype),
        "fused": fused,
        "shared": shared,
        "definition": definition_digest(),
        "exporters": {name: importlib.metadata.version(name) for name in _EXPORTERS},
    }
    text = json.dumps(made_from, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _name(key: str, content: bytes) -> str:
    return f"{key}-{hashlib.sha256(content).hexdigest()}.onnx"
