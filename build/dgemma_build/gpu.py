"""Targets with a GPU: the emitted graph in BF16, a precision, and a TensorRT plan of them.

Knows which files a plan comes with; knows neither TensorRT nor what the graph computes. Weights are
inputs, so a plan is made from a geometry alone and serves every checkpoint of it.
"""

from __future__ import annotations

from pathlib import Path

import torch

from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.manifest import Binding, Runtime
from dgemma.precision import Policy
from dgemma_build import compile as compiler
from dgemma_build.compile_apart import compile_apart
from dgemma_build.envelope import Envelope
from dgemma_build.graph_cache import cached_graph
from dgemma_build.parts import Parts, Progress
from dgemma_build.precision_pass import apply_precision
from dgemma_build.profiles import limits, profiles
from dgemma_build.targets import Target

PLAN, LOG = "plan.engine", "build.log"

# TensorRT's names of the types that a pass, a weight or a scale can have.
_SAFETENSORS = {
    "FLOAT": "F32",
    "BF16": "BF16",
    "HALF": "F16",
    "INT64": "I64",
    "INT32": "I32",
    "BOOL": "BOOL",
    "UINT8": "U8",
    "FP8": "F8_E4M3",
    "INT4": "I4",
    "FP4": "F4",
}


def from_geometry(
    geometry: Geometry,
    policy: Policy,
    target: Target,
    envelope: Envelope,
    cache: Path,
    work: Path,
    progress: Progress,
) -> Parts:
    """A plan in the empty directory `work`, and the log of its build; graphs are kept in `cache`.

    Raises ConfigurationError where this machine has no compiler for the target, or where the
    compiler refuses the graph: then it names the nodes and where its log was put.
    """
    assert target.compute_capability is not None, "targets of GPUs have one"
    progress("graph", 0, 1)
    graph = cached_graph(geometry, torch.bfloat16, cache)
    apply_precision(graph, policy)
    progress("graph", 1, 1)
    shapes = profiles(graph.graph, geometry, envelope)
    try:
        compiled = compile_apart(graph, target.flavour, target.compute_capability, shapes, progress)
    except compiler.CompilationFailed as error:
        log = work.with_suffix(".log")
        log.write_text(error.log)
        raise ConfigurationError(f"{error}; all that the compiler said is in {log}") from None
    (work / PLAN).write_bytes(compiled.plan)
    (work / LOG).write_text(compiled.log)
    capability = int(target.compute_capability.replace(".", ""))
    runtime = Runtime(compiled.flavour, compiled.version, capability)
    bindings = tuple(
        Binding(b.name, _SAFETENSORS[b.dtype], b.shape, b.is_input) for b in compiled.bindings
    )
    return Parts(runtime, PLAN, (), bindings, others=(LOG,), profiles=tuple(map(limits, shapes)))
