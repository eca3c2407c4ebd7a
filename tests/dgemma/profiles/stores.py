"""Model stores of a few bytes whose manifests are as real ones are."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from dgemma.geometry import Geometry
from dgemma.machine import Gpu, Machine
from dgemma.manifest import FILE_NAME, Manifest, Runtime
from dgemma.model.checkpoint import parameter_shapes
from dgemma.precision import policy_of
from dgemma.sealed import FileRecord
from dgemma.store_manifest import FILE_NAME as STORE_FILE
from dgemma.store_manifest import StoreManifest, TensorRecord
from tests.dgemma.engine.fake_engine import geometry_of
from tests.dgemma_build.quantized import whole_groups

GEOMETRY = geometry_of()
GROUPS = whole_groups()  # of which weights of every format can be
RTX = "1.7.1.116"
SPARK = Gpu("NVIDIA GB10", "GPU-1", 121, "580.95", 2**37, 2**36)
ON_SPARK = Machine(SPARK, 2**36, {"onnxruntime": "1.32", "tensorrt_rtx": RTX}, {})
CUDA = "2.13.0+cu130"
WITH_KERNELS = replace(ON_SPARK, runtimes={**ON_SPARK.runtimes, "torch": CUDA})
KERNELS_ALONE = replace(ON_SPARK, runtimes={"onnxruntime": "1.32", "torch": CUDA})
NO_GPU = Machine(None, 2**36, {"onnxruntime": "1.32"}, {})


def write_engine(
    directory: Path,
    precision: str = "fp32",
    target: str = "cpu",
    *,
    version: str = RTX,
    written: float = 1e9,
    geometry: Geometry = GEOMETRY,
    **other: Any,
) -> Path:
    """An engine with its weights for `cpu`, a plan without any for `smNN`, nothing for `gpu`."""
    directory.mkdir(parents=True, exist_ok=True)
    on_gpu = target != "cpu"
    names = ("plan.engine", "build.log") if on_gpu else ("graph.onnx", "weights.safetensors")
    if target == "gpu":
        names, other = (), {"runtime": Runtime("torch", CUDA), "graph": ""} | other
    for name in names:
        (directory / name).write_bytes(f"{name} of {directory.name}".encode())
    fields: dict[str, Any] = {
        "target": target,
        "precision": precision,
        "policy": policy_of(precision),
        "runtime": Runtime("tensorrt_rtx", version, int(target[2:]))
        if target.startswith("sm")
        else Runtime("onnxruntime", "1.32"),
        "geometry": geometry,
        "source": f"source of {directory.name}",
        "graph": next(iter(names), ""),
        "weights": () if on_gpu else names[1:],
        "bindings": (),
        "files": {name: FileRecord.of(directory / name) for name in names},
        "versions": {},
    }
    Manifest(**fields | other).write(directory)
    os.utime(directory / FILE_NAME, (written, written))
    return directory


def write_weights(
    directory: Path, precision: str, *, source: str = "one", written: float = 1e9, **other: Any
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    shard = directory / "layer-00.safetensors"
    held: dict[str, TensorRecord] = other.get("tensors", {})
    size = max((record.spec.nbytes for record in held.values()), default=0)
    shard.write_bytes(f"{precision} of {source}".encode().ljust(size))
    fields: dict[str, Any] = {
        "precision": precision,
        "policy": policy_of(precision),
        "geometry": GEOMETRY,
        "origin": "dgemma",
        "source": source,
        "recipe": "recipe",
        "tensors": {},
        "files": {shard.name: FileRecord.of(shard)},
        "sources": {},
        "versions": {},
    }
    StoreManifest(**fields | other).write(directory)
    os.utime(directory / STORE_FILE, (written, written))
    return directory


@cache
def whole(precision: str) -> dict[str, Any]:
    """What a store says that holds all weights of a network, whose files are not looked at."""
    specs = policy_of(precision).tensors(parameter_shapes(GROUPS))
    tensors = {
        name: TensorRecord("layer-00.safetensors", spec.dtype, spec.shape, 0)
        for name, spec in specs.items()
    }
    return {"geometry": GROUPS, "tensors": tensors}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    """One bit in the middle; the size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
