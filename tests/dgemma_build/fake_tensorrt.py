"""TensorRT 11's builder as it is documented, and nothing else: for GPUs that no test machine has.

Unknown names, wrong types and shapes outside of the documented rules fail, as they do in the real
binding. It parses the inputs and outputs of an ONNX file, computes nothing, and answers with a plan
that lists what it was told. What ONNX operators are accepted is for the real parser to say.
https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/index.html
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from enum import Enum, IntEnum
from typing import Any, ClassVar

import onnx
from onnx import TensorProto

__version__ = "11.4.1.9"


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1
    PREFER_AOT_PYTHON_PLUGINS = 2
    PREFER_JIT_PYTHON_PLUGINS = 3


class BuilderFlag(Enum):
    DEBUG = 0
    REFIT = 1
    DISABLE_TIMING_CACHE = 2
    TF32 = 3
    SPARSE_WEIGHTS = 4
    STRICT_NANS = 5


class ProfilingVerbosity(Enum):
    LAYER_NAMES_ONLY = 0
    DETAILED = 1
    NONE = 2


class DataType(Enum):
    FLOAT = TensorProto.FLOAT
    HALF = TensorProto.FLOAT16
    BF16 = TensorProto.BFLOAT16
    INT32 = TensorProto.INT32
    INT64 = TensorProto.INT64
    BOOL = TensorProto.BOOL
    FP8 = TensorProto.FLOAT8E4M3FN
    INT4 = TensorProto.INT4
    FP4 = TensorProto.FLOAT4E2M1


class ILogger:
    class Severity(Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def __init__(self) -> None:
        self._initialised = True  # the binding fails where a subclass leaves this out

    def log(self, severity: ILogger.Severity, msg: str) -> None:
        raise NotImplementedError("ILogger.log")


class IProgressMonitor:
    def __init__(self) -> None:
        self._initialised = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError("IProgressMonitor.phase_start")

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError("IProgressMonitor.step_complete")

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError("IProgressMonitor.phase_finish")


def _is(value: Any, kind: type | tuple[type, ...], what: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise TypeError(f"{what}: incompatible argument {value!r}")
    return value


class _Typed:
    """Attributes are those in `_types`, and of these types, as in a binding."""

    _types: ClassVar[dict[str, type]]

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            if name not in self._types:
                raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
            _is(value, self._types[name], name)
        object.__setattr__(self, name, value)


class ITensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        tensor = value.type.tensor_type
        self.name, self.dtype = value.name, DataType(tensor.elem_type)
        self.shape = tuple(
            dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim
        )


class INetworkDefinition:
    def __init__(self) -> None:
        self._inputs: list[ITensor] = []
        self._outputs: list[ITensor] = []

    num_inputs = property(lambda self: len(self._inputs))
    num_outputs = property(lambda self: len(self._outputs))

    def get_input(self, index: int) -> ITensor:
        return self._inputs[_is(index, int, "index")]

    def get_output(self, index: int) -> ITensor:
        return self._outputs[_is(index, int, "index")]


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(
        self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]
    ) -> None:
        for shape in (min, opt, max):
            for size in _is(shape, (tuple, list), "Dims"):
                _is(size, int, "Dims")
        self._shapes[_is(input, str, "input")] = (tuple(min), tuple(opt), tuple(max))


class IBuilderConfig(_Typed):
    _types: ClassVar[dict[str, type]] = {
        "profiling_verbosity": ProfilingVerbosity,
        "progress_monitor": IProgressMonitor,
    }

    def __init__(self) -> None:
        self._flags = {BuilderFlag.TF32}
        self._profiles: list[IOptimizationProfile] = []
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(_is(flag, BuilderFlag, "flag"))

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(_is(flag, BuilderFlag, "flag"))

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(_is(profile, IOptimizationProfile, "profile"))
        return len(self._profiles) - 1


class ParserError:
    def __init__(self, node: onnx.NodeProto, description: str) -> None:
        self._node, self._description = node, description

    def desc(self) -> str:
        return self._description

    def node_name(self) -> str:
        return self._node.name

    def node_operator(self) -> str:
        return self._node.op_type


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = _is(network, INetworkDefinition, "network")
        _is(logger, ILogger, "logger")
        self._errors: list[ParserError] = []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index: int) -> ParserError:
        return self._errors[_is(index, int, "index")]

    def parse(self, model: bytes, path: str | None = None) -> bool:
        graph = onnx.ModelProto.FromString(_is(model, bytes, "model")).graph
        _is(path, (str, type(None)), "path")
        self._errors = [
            ParserError(node, "Plugin not found") for node in graph.node if node.domain not in ("",)
        ]
        self._network._inputs = [ITensor(value) for value in graph.input]
        self._network._outputs = [ITensor(value) for value in graph.output]
        return not self._errors


class IHostMemory(bytes):
    """The binding's has the buffer protocol, which is what matters."""


class Builder:
    def __init__(self, logger: ILogger) -> None:
        if not _is(logger, ILogger, "logger").__dict__.get("_initialised"):
            raise TypeError("ILogger.__init__() must be called when overriding __init__")
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        if _is(flags, int, "flags") & ~0b1110:
            raise ValueError(f"unknown creation flags {flags:b}")
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None:
        _is(network, INetworkDefinition, "network")
        _is(config, IBuilderConfig, "config")
        say: Callable[[ILogger.Severity, str], None] = self._logger.log
        say(ILogger.Severity.VERBOSE, "Graph optimization time: 0.1 seconds.")
        for problem in _problems(network, config):
            say(ILogger.Severity.ERROR, problem)
            return None
        say(ILogger.Severity.INFO, "Total Activation Memory: 4096 bytes")
        if not _go_on(config.progress_monitor):
            say(ILogger.Severity.ERROR, "The build was cancelled.")
            return None
        told = {
            "tf32": BuilderFlag.TF32 in config._flags,
            "verbosity": config.profiling_verbosity.name,
            "inputs": [t.name for t in network._inputs],
            "profiles": [profile._shapes for profile in config._profiles],
        }
        return IHostMemory(json.dumps(told).encode())


def _go_on(monitor: IProgressMonitor) -> bool:
    """A build of two phases, the second within the first; False once it was told to stop."""
    monitor.phase_start("Building engine", None, 2)
    monitor.phase_start("Timing tactics", "Building engine", 4)
    for step in range(4):
        if not _is(monitor.step_complete("Timing tactics", step), bool, "step_complete"):
            return False
    monitor.phase_finish("Timing tactics")
    for step in range(2):
        monitor.step_complete("Building engine", step)
    monitor.phase_finish("Building engine")
    return True


def _problems(network: INetworkDefinition, config: IBuilderConfig) -> Iterator[str]:
    inputs = {tensor.name: tensor.shape for tensor in network._inputs}
    dynamic = {name for name, shape in inputs.items() if -1 in shape}
    if dynamic and not config._profiles:
        yield "Network has dynamic inputs, but no optimization profile has been defined."
    for index, profile in enumerate(config._profiles):
        if unknown := profile._shapes.keys() - inputs.keys():
            yield f"profile {index}: no such inputs {sorted(unknown)}"
        if missing := dynamic - profile._shapes.keys():
            yield f"profile {index}: no shapes for dynamic inputs {sorted(missing)}"
        for name, shapes in profile._shapes.items():
            real = inputs[name]
            if any(len(shape) != len(real) for shape in shapes):
                yield f"profile {index}: {name}: ranks differ from {real}"
            for size, low, typical, high in zip(real, *shapes, strict=True):
                if not 0 <= low <= typical <= high or (size != -1 and {low, high} != {size}):
                    yield f"profile {index}: {name}: {low} <= {typical} <= {high} of {size}"
