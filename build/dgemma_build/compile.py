"""Compiles a graph to a TensorRT plan, in this process.

Knows TensorRT's builder; knows neither what the graph computes nor which files a plan goes into.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from dgemma.errors import ConfigurationError
from dgemma.manifest import Binding
from dgemma_build.build_watch import WHOLE, BuildLog, listener
from dgemma_build.flavours import Flavour
from dgemma_build.profiles import Profile

Progress = Callable[[str, int, int], None]  # what, done, total


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


@dataclass(frozen=True)
class CompiledPlan:
    """A plan and all that must be known beside it: a plan cannot be read without its GPU."""

    plan: bytes
    log: str
    flavour: str
    version: str  # of TensorRT
    compute_capability: str
    bindings: tuple[Binding, ...]
    profiles: tuple[Profile, ...]

    @property
    def activation_bytes(self) -> int | None:
        """What a pass of the largest shapes takes on the device; None where the log is silent."""
        found = re.search(r"Total Activation Memory: (\d+) bytes", self.log)
        return None if found is None else int(found[1])


class CompilationFailed(ConfigurationError):
    """TensorRT rejected the graph or could not compile it; `log` is all that it said."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message)
        self.log = log


def compile_plan(
    model: onnx.ModelProto,
    flavour: Flavour,
    compute_capability: str,
    profiles: Sequence[Profile],
    progress: Progress = lambda what, done, total: None,
    weights: Path | None = None,
) -> CompiledPlan:
    """Compile `model` for one kind of GPU; inputs that are weights stay inputs.

    Where the graph has weights as external initialisers they become constants of the plan, read
    from the directory `weights`. `progress` is called from threads of TensorRT's; what it raises
    stops the build at TensorRT's next step, which may be most of the build away: `compile_apart`
    stops at once. Raises ConfigurationError where this machine or this TensorRT cannot build for
    that GPU, CompilationFailed naming the graph's nodes.
    """
    trt = flavour.load()
    log = BuildLog()
    logger = log.logger(trt)
    builder = trt.Builder(logger)
    config = builder.create_builder_config()
    flavour.aim(trt, config, compute_capability)
    # Of no effect where networks are always strongly typed, as in TensorRT 11.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    _parse(parser, model, weights, log)
    # The graph says where fp32 is needed, and TF32 is not fp32.
    config.clear_flag(trt.BuilderFlag.TF32)
    # So that an engine inspection on the card can tell which kernels were fused.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for profile in profiles:
        config.add_optimization_profile(_profile(builder, profile))
    plan = _build(trt, builder, network, config, log, progress)
    return CompiledPlan(
        plan,
        log.text,
        flavour.name,
        trt.__version__,
        compute_capability,
        tuple(_bindings(network)),
        tuple(profiles),
    )


def _parse(parser: Any, model: onnx.ModelProto, weights: Path | None, log: BuildLog) -> None:
    ours = onnx.ModelProto()
    ours.CopyFrom(model)
    for node in ours.graph.node:
        if node.op_type == "Attention":
            # Heads wider than 256 have no fused kernel, and without this an error in place of one:
            # https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md
            node.attribute.append(onnx.helper.make_attribute("TRT_decomposable", 1))
    # External weights are looked for beside the file of this name.
    place = None if weights is None else str(weights / "graph.onnx")
    if parser.parse(ours.SerializeToString(), place):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    said = "; ".join(f"{e.node_name()} ({e.node_operator()}): {e.desc()}" for e in errors)
    raise CompilationFailed(f"the graph is not accepted: {said or log.last_error}", log.text)


def _profile(builder: Any, shapes: Profile) -> Any:
    profile = builder.create_optimization_profile()
    for name, (least, typical, most) in shapes.items():
        profile.set_shape(name, least, typical, most)
    return profile


def _build(
    trt: Any, builder: Any, network: Any, config: Any, log: BuildLog, progress: Progress
) -> bytes:
    progress("compile", 0, WHOLE)
    watch = listener(trt, lambda part: progress("compile", part, WHOLE))
    config.progress_monitor = watch
    plan = builder.build_serialized_network(network, config)
    if watch.raised is not None:
        raise watch.raised
    if plan is None:
        raise CompilationFailed(f"no plan: {log.last_error}", log.text)
    progress("compile", WHOLE, WHOLE)
    return bytes(plan)


def _bindings(network: Any) -> list[Binding]:
    tensors = [(network.get_input(i), True) for i in range(network.num_inputs)]
    tensors += [(network.get_output(i), False) for i in range(network.num_outputs)]
    return [
        Binding(t.name, _SAFETENSORS[t.dtype.name], tuple(t.shape), is_input)
        for t, is_input in tensors
    ]
