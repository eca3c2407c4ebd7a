"""Target `cpu`: the emitted graph with its weights as external initialisers for onnxruntime.

Knows how an ONNX graph points into weight files and which precisions onnxruntime computes;
knows nothing of GPUs.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from dgemma.geometry import Geometry
from dgemma.manifest import Binding, Runtime
from dgemma.model.checkpoint import Checkpoint, load_tensors, parameter_shapes
from dgemma.weight_store import WeightStore
from dgemma_build.emit import emit
from dgemma_build.emit_tail import emit_tail
from dgemma_build.index_graph import split_index
from dgemma_build.meetings import add_meetings
from dgemma_build.parts import Parts, Progress
from dgemma_build.precision_pass import apply_precision
from dgemma_build.store import write_store

GRAPH, INDEX, WEIGHTS = "graph.onnx", "index.onnx", "weights.safetensors"
# On a CPU the detour over gathered tokens costs more than this many tiny experts computed for every
# token, and so small a network is bound by the number of its operations.
FEW_EXPERTS = 8
# onnxruntime dequantises these inside the graph; what it cannot read is dequantised here, exactly.
IN_GRAPH = ("fp8", "int4")

_SAFETENSORS: Mapping[int, str] = {
    TensorProto.FLOAT: "F32",
    TensorProto.INT64: "I64",
    TensorProto.BOOL: "BOOL",
}


@dataclass(frozen=True)
class Bytes:
    """Where a tensor stands in a weight file; `dtype` is spelled as safetensors does."""

    file: str
    offset: int
    length: int
    dtype: str


def from_checkpoint(
    checkpoint: Checkpoint, geometry: Geometry, work: Path, progress: Progress
) -> Parts:
    """An fp32 engine in the empty directory `work`."""
    return _plain(geometry, load_tensors(checkpoint, geometry), work, progress)


def from_store(store: WeightStore, work: Path, progress: Progress) -> Parts:
    """An engine of a quantised store in the empty directory `work`."""
    manifest = store.manifest
    formats = {manifest.policy.format_of(name) for name in manifest.parameters}
    quantised = {format.name for format in formats if format.is_quantized}
    if not quantised <= set(IN_GRAPH):
        names = parameter_shapes(manifest.geometry)
        real = ((name, store.parameter(name)) for name in names)
        return _plain(manifest.geometry, real, work, progress)
    progress("graph", 0, 1)
    graph = emit(manifest.geometry, shared=True)
    apply_precision(graph, manifest.policy)
    for name in manifest.files:
        link(store.directory / name, work / name)
    return _save(manifest.geometry, graph, places(store), work, progress)


def places(store: WeightStore) -> dict[str, Bytes]:
    """Of every tensor of a store, files named as within its directory."""
    return {
        name: Bytes(record.file, record.offset, record.spec.nbytes, record.dtype)
        for name, record in store.manifest.tensors.items()
    }


def link(source: Path, target: Path) -> None:
    """The same bytes under another name, where the file system can; else a copy."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def attach_weights(model: onnx.ModelProto, places: Mapping[str, Bytes]) -> None:
    """Turn the graph's weight inputs into initialisers that live in weight files.

    A weight that the network has but this graph does not use (none, or an unused scalar) is left
    out. The graph stays as small as it was: no weight is copied into it. What is stored in BF16 and
    computed in fp32 is widened as the graph is loaded.
    """
    remaining, widened = [], []
    for value in model.graph.input:
        place = places.get(value.name)
        if place is None:
            remaining.append(value)
            continue
        tensor = model.graph.initializer.add()
        tensor.name = value.name
        tensor.data_type = value.type.tensor_type.elem_type
        if place.dtype == "BF16" and tensor.data_type == TensorProto.FLOAT:
            tensor.name, tensor.data_type = f"{value.name}.stored", TensorProto.BFLOAT16
            widened.append(
                helper.make_node(
                    "Cast", [tensor.name], [value.name], name=tensor.name, to=TensorProto.FLOAT
                )
            )
        tensor.dims.extend(d.dim_value for d in value.type.tensor_type.shape.dim)
        tensor.data_location = TensorProto.EXTERNAL
        for key, text in (
            ("location", place.file),
            ("offset", str(place.offset)),
            ("length", str(place.length)),
        ):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, text
    nodes = [*widened, *model.graph.node]
    del model.graph.input[:]
    model.graph.input.extend(remaining)
    if widened:
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del model.graph.node[:]
        model.graph.node.extend(kept)


def _plain(
    geometry: Geometry, tensors: Iterator[tuple[str, Tensor]], work: Path, progress: Progress
) -> Parts:
    """An engine whose weights are fp32 throughout."""
    shapes = parameter_shapes(geometry)
    total = sum(torch.Size(shape).numel() for shape in shapes.values()) * torch.float32.itemsize
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        progress("weights", done, total)

    written = write_store(work / WEIGHTS, shapes, torch.float32, tensors, advance)
    places = {name: Bytes(WEIGHTS, p.offset, p.length, "F32") for name, p in written.items()}
    progress("graph", 0, 1)
    graph = emit(geometry, fused=geometry.num_experts <= FEW_EXPERTS, shared=True)
    return _save(geometry, graph, places, work, progress)


def _save(
    geometry: Geometry,
    graph: onnx.ModelProto,
    places: Mapping[str, Bytes],
    work: Path,
    progress: Progress,
) -> Parts:
    tail = emit_tail(geometry)
    index, graph = split_index(graph)
    add_meetings(graph, geometry)
    for name, model in ((INDEX, index), (GRAPH, graph), *tail.items()):
        attach_weights(model, places)
        onnx.save(model, work / name)
    progress("graph", 1, 1)
    weights = tuple(sorted({place.file for place in places.values()}))
    runtime = Runtime("onnxruntime", importlib.metadata.version("onnxruntime"))
    return Parts(runtime, GRAPH, weights, bindings(graph), tuple(tail), INDEX)


def bindings(graph: onnx.ModelProto) -> tuple[Binding, ...]:
    """What a pass binds: the graph's inputs and outputs, weights left out."""
    ends = [(value, True) for value in graph.graph.input]
    ends += [(value, False) for value in graph.graph.output]
    return tuple(
        Binding(
            value.name,
            _SAFETENSORS[value.type.tensor_type.elem_type],
            tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim),
            is_input,
        )
        for value, is_input in ends
    )
