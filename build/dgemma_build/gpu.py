"""Targets with a GPU: the emitted graph in BF16, a precision, and TensorRT plans of them.

Knows which files a plan comes with; knows neither TensorRT nor what the graph computes. Weights are
inputs, so a plan is made from a geometry alone and serves every checkpoint of it.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import onnx
import torch

from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.manifest import Runtime
from dgemma.precision import Policy
from dgemma.targets import Target
from dgemma.weight_store import WeightStore
from dgemma_build.chain import linked, period, take_apart
from dgemma_build.compile import CompilationFailed, CompiledPlan
from dgemma_build.compile_apart import compile_apart
from dgemma_build.cpu import attach_weights, places
from dgemma_build.envelope import Envelope
from dgemma_build.graph_cache import cached_graph
from dgemma_build.in_turn import in_turn
from dgemma_build.parts import Parts, Progress
from dgemma_build.precision_pass import apply_precision
from dgemma_build.profiles import limits, profiles

PLAN, LOG = "plan.engine", "build.log"
BEFORE = "before.engine"  # what enters the layers, where `PLAN` is a period of them


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
    """Plans in the empty directory `work`, and the log of their build; `cache` keeps graphs.

    Where the layers repeat, one plan serves every period of them, and another gives what enters
    them. With `constants` there is one plan, which holds that store's weights; `policy` must be the
    policy of them. Raises ConfigurationError where this machine has no compiler for the target, or
    where the compiler refuses a graph: then it names the nodes and where its log was put.
    """
    assert target.compute_capability is not None, "targets of GPUs have one"
    few, own = (geometry, policy) if constants is not None else period(geometry, policy)
    progress("graph", 0, 1)
    graph = cached_graph(few, torch.bfloat16, cache)
    prepare(graph, few, own)
    graphs = {PLAN: graph}
    if few != geometry:
        pieces = take_apart(graph, few)
        graphs = {BEFORE: pieces.before, PLAN: pieces.layers}
    progress("graph", 1, 1)
    weights = None
    if constants is not None:
        attach_weights(graph, places(constants))
        weights = constants.directory
    compiled = _compile(graphs, geometry, target, envelope, work, progress, weights)
    plan = compiled[PLAN]
    parts = Parts(
        Runtime(plan.flavour, plan.version, int(target.compute_capability.replace(".", ""))),
        PLAN,
        (),
        plan.bindings,
        others=(LOG,),
        profiles=_limits(compiled.values()),
        constants=None if constants is None else constants.manifest.content,
    )
    if len(compiled) == 1:
        return parts
    lists = {file: made.bindings for file, made in compiled.items()}
    chain, bindings = linked(lists, PLAN, len(few.layers), len(geometry.layers))
    return replace(parts, chain=chain, bindings=bindings)


def _compile(
    graphs: Mapping[str, onnx.ModelProto],
    geometry: Geometry,
    target: Target,
    envelope: Envelope,
    work: Path,
    progress: Progress,
    weights: Path | None,
) -> dict[str, CompiledPlan]:
    """Each graph compiled to the file it is listed by, and one log of all."""
    assert target.compute_capability is not None, "targets of GPUs have one"
    compiled: dict[str, CompiledPlan] = {}
    log, done = "", 0
    whole = sum(len(graph.graph.node) for graph in graphs.values())
    for file, graph in graphs.items():
        share = len(graph.graph.node)
        tell = _share_of(progress, done, share, whole)
        shapes = profiles(graph.graph, geometry, envelope)
        try:
            made = compile_apart(
                graph, target.flavour, target.compute_capability, shapes, tell, weights
            )
        except CompilationFailed as error:
            path = work.with_suffix(".log")
            path.write_text(log + error.log)
            raise ConfigurationError(f"{error}; all that the compiler said is in {path}") from None
        (work / file).write_bytes(made.plan)
        log += f"info: {file}\n{made.log}"
        done += share
        compiled[file] = made
    (work / LOG).write_text(log)
    return compiled


def _share_of(progress: Progress, done: int, share: int, whole: int) -> Progress:
    """Tells how far one graph is as how far all are; sizes are in nodes."""
    return lambda what, part, total: progress(what, (total * done + part * share) // whole, total)


def _limits(plans: Iterable[CompiledPlan]) -> tuple[Mapping[str, tuple[int, int]], ...]:
    """Of each profile, the limits of every size that an input of any plan has."""
    every = [map(limits, plan.profiles) for plan in plans]
    return tuple(dict(ChainMap(*found)) for found in zip(*every, strict=True))
