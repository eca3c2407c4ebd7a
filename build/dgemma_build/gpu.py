"""Targets with a GPU: the emitted graph in BF16, a precision, and a TensorRT plan of them.

Knows which files a plan comes with; knows neither TensorRT nor what the graph computes. Weights are
inputs, so a plan is made from a geometry alone and serves every checkpoint of it.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch

from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.manifest import Runtime
from dgemma.precision import Policy
from dgemma.targets import Target
from dgemma.weight_store import WeightStore
from dgemma_build import compile as compiler
from dgemma_build.compile_apart import compile_apart
from dgemma_build.cpu import attach_weights, places
from dgemma_build.envelope import Envelope
from dgemma_build.graph_cache import cached_graph
from dgemma_build.in_turn import in_turn
from dgemma_build.parts import Parts, Progress
from dgemma_build.precision_pass import apply_precision
from dgemma_build.profiles import limits, profiles

PLAN, LOG = "plan.engine", "build.log"


def prepare(graph: onnx.ModelProto, geometry: Geometry, policy: Policy) -> None:
    """Make an emitted graph, in place, what is compiled: quantised, and kind to memory."""
    apply_precision(graph, policy)
    in_turn(graph, geometry)


def from_geometry(
    geometry: Geometry,
    policy: Policy,
    target: Target,
    envelope: Envelope,
    cache: Path,
    work: Path,
    progress: Progress,
    constants: WeightStore | None = None,
) -> Parts:
    """A plan in the empty directory `work`, and the log of its build; graphs are kept in `cache`.

    With `constants` the plan holds that store's weights, which `policy` must be the policy of.
    Raises ConfigurationError where this machine has no compiler for the target, or where the
    compiler refuses the graph: then it names the nodes and where its log was put.
    """
    assert target.compute_capability is not None, "targets of GPUs have one"
    progress("graph", 0, 1)
    graph = cached_graph(geometry, torch.bfloat16, cache)
    prepare(graph, geometry, policy)
    progress("graph", 1, 1)
    shapes = profiles(graph.graph, geometry, envelope)
    weights = None
    if constants is not None:
        attach_weights(graph, places(constants))
        weights = constants.directory
    try:
        compiled = compile_apart(
            graph, target.flavour, target.compute_capability, shapes, progress, weights
        )
    except compiler.CompilationFailed as error:
        log = work.with_suffix(".log")
        log.write_text(error.log)
        raise ConfigurationError(f"{error}; all that the compiler said is in {log}") from None
    (work / PLAN).write_bytes(compiled.plan)
    (work / LOG).write_text(compiled.log)
    capability = int(target.compute_capability.replace(".", ""))
    runtime = Runtime(compiled.flavour, compiled.version, capability)
    return Parts(
        runtime,
        PLAN,
        (),
        compiled.bindings,
        others=(LOG,),
        profiles=tuple(map(limits, shapes)),
        constants=None if constants is None else constants.manifest.content,
    )
