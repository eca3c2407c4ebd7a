"""Engine directories of GPUs and weight stores for them, without a compiler: for tests of loading.

The file that stands for the plan says nothing; `tests.dgemma_build.test_gpu` holds the bindings
listed here to those of plans that TensorRT compiled.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from dgemma.engine.graph import ENTERING, LEAVING, fresh_names, pool_names
from dgemma.geometry import Geometry
from dgemma.manifest import Binding, Manifest, Runtime
from dgemma.model.checkpoint import parameter_shapes
from dgemma.model.network import Network
from dgemma.precision import policy_of
from dgemma.sealed import FileRecord
from dgemma.store_manifest import StoreManifest, TensorRecord
from dgemma_build.chain import linked
from dgemma_build.quantize.run import quantize_checkpoint
from tests.dgemma.model.tiny_weights import hf_tensors, write_weights

PLAN, BEFORE = "plan.engine", "before.engine"
RUNTIME = Runtime("tensorrt_rtx", "1.7.1.116", 121)
TORCH = Runtime("torch", "2.13.0+cu130")
LIMITS = {
    "rows": (1, 8),
    "pairs": (0, 4),
    "slots": (1, 4),
    "context": (1, 512),
    "ring": (1, 1024),
    "capacity": (1, 1024),
}
_PACKED = {"int4": "I4", "nvfp4": "F4"}
_ENTRANCE = ("embed_tokens.", "self_conditioning.")  # weights that layers do not have


def bindings_of(geometry: Geometry, precision: str) -> tuple[Binding, ...]:
    """What a plan of `precision` takes and gives, a pass and its weights."""
    g, real = geometry, "F32" if precision == "fp32" else "BF16"
    pass_ = {
        "ids": ("I64", (-1, g.canvas_length)),
        "soft": (real, (-1, g.canvas_length, g.hidden_size)),
        "denoise": ("BOOL", (-1,)),
        **dict.fromkeys(("start", "valid", "slot", "pair_from", "pair_to"), ("I64", (-1,))),
        **dict.fromkeys(("context_index", "ring_index", "room"), ("I64", (-1,))),
    }
    heads = [(x.num_key_value_heads, x.head_dim) for x in g.layers for _ in "kv"]
    sizes = [-1 if x.is_full else g.sliding_window for x in g.layers for _ in "kv"]
    for name, (groups, dim), size in zip(pool_names(g), heads, sizes, strict=True):
        pass_[name] = (real, (-1, groups, size, dim))
    inputs = [Binding(name, dtype, shape, True) for name, (dtype, shape) in pass_.items()]
    outputs = {"hidden": (real, (-1, g.canvas_length, g.hidden_size)), "load": ("I64", ())}
    for name, (groups, dim) in zip(fresh_names(g), heads, strict=True):
        outputs[name] = (real, (-1, groups, g.canvas_length, dim))
    return (
        *inputs,
        *_weights(geometry, precision),
        *(Binding(name, dtype, shape, False) for name, (dtype, shape) in outputs.items()),
    )


def _weights(geometry: Geometry, precision: str) -> list[Binding]:
    policy, shapes = policy_of(precision), parameter_shapes(geometry)
    found = []
    for name, spec in policy.tensors(shapes).items():
        packed = _PACKED.get(policy.format_of(name).name) if name in shapes else None
        shape = shapes[name] if packed else spec.shape
        found.append(Binding(name, packed or spec.dtype, shape, True))
    return found


def write_plan(directory: Path, geometry: Geometry, precision: str, **changes: Any) -> Manifest:
    """A directory with a plan, its log and its manifest, which says what `changes` do."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / PLAN).write_bytes(b"a plan")
    (directory / "build.log").write_text("info: built\n")
    manifest = Manifest(
        target="sm121",
        precision=precision,
        policy=policy_of(precision),
        runtime=RUNTIME,
        geometry=geometry,
        source="abc",
        graph=PLAN,
        weights=(),
        bindings=bindings_of(geometry, precision),
        files={name: FileRecord.of(directory / name) for name in (PLAN, "build.log")},
        versions={"torch": "1"},
        profiles=(LIMITS,),
    )
    manifest = replace(manifest, **changes)
    manifest.write(directory)
    return manifest


def write_kernels(directory: Path, geometry: Geometry, precision: str, **changes: Any) -> Manifest:
    """An engine for any GPU, which is nothing but a manifest."""
    directory.mkdir(parents=True, exist_ok=True)
    policy = policy_of(precision)
    manifest = Manifest("gpu", precision, policy, TORCH, geometry, "abc", "", (), (), {}, {})
    manifest = replace(manifest, **changes)
    manifest.write(directory)
    return manifest


def in_two(geometry: Geometry, precision: str) -> dict[str, tuple[Binding, ...]]:
    """What the plans of a network take and give of which `geometry` is a period."""
    whole = bindings_of(geometry, precision)
    dtype, shape = next((b.dtype, b.shape) for b in whole if b.name == "soft")
    leaving = Binding(LEAVING, dtype, shape, False)
    first = [b for b in whole if b.name in ("ids", "soft") or b.name.startswith(_ENTRANCE)]
    rest = [b for b in whole if b not in first]
    return {
        BEFORE: (*first, *(b for b in rest if b.name == "denoise"), leaving),
        PLAN: (Binding(ENTERING, dtype, shape, True), *rest, leaving),
    }


def write_chain(directory: Path, geometry: Geometry, precision: str, **changes: Any) -> Manifest:
    """As `write_plan`, of a network of two times the layers of `geometry`, in two plans."""
    layers = 2 * geometry.layers
    plans = in_two(geometry, precision)
    chain, bindings = linked(plans, PLAN, len(geometry.layers), len(layers))
    directory.mkdir(parents=True, exist_ok=True)
    for name in plans:
        (directory / name).write_bytes(b"a plan")
    files = {name: FileRecord.of(directory / name) for name in plans}
    said = {"bindings": bindings, "chain": chain, "files": files}
    return write_plan(directory, replace(geometry, layers=layers), precision, **said | changes)


def write_store(directory: Path, network: Network, precision: str) -> Path:
    """`network`'s weights as `dgemma-build quantize` stores them, or as they are for fp32."""
    if precision == "fp32":
        return _plain_store(directory / "store", network)
    checkpoint = directory / "checkpoint"
    write_weights(checkpoint, network.geometry, hf_tensors(network))
    quantize_checkpoint(checkpoint, precision, directory / "store")
    return directory / "store"


def _plain_store(directory: Path, network: Network) -> Path:
    """No such store is made for serving; with one, an engine can be held to every digit."""
    directory.mkdir(parents=True)
    path = directory / "rest.safetensors"
    save_file({name: p.detach().clone() for name, p in network.named_parameters()}, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    StoreManifest(
        precision="fp32",
        policy=policy_of("fp32"),
        geometry=network.geometry,
        origin="tests",
        source="abc",
        recipe="def",
        tensors={
            name: TensorRecord(
                path.name, h["dtype"], tuple(h["shape"]), 8 + length + h["data_offsets"][0]
            )
            for name, h in header.items()
        },
        files={path.name: FileRecord.of(path)},
        sources={},
        versions={},
    ).write(directory)
    return directory
