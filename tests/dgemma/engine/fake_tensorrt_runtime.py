"""TensorRT's runtime as it is documented, and nothing else: for GPUs that no test machine has.

Unknown names and wrong types fail, as they do in the real binding, and so does whatever leaves a
result undefined on a GPU: an address that is missing or not aligned, shapes outside of the profile,
memory that is too small, a capture before the kernels of its shape were made, a context that
changed since. What is executed is the network in torch, on the memory that the addresses name, by
`fake_gpu`.
https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/_static/python-api/index.html
"""

from __future__ import annotations

import ctypes
import json
import math
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from dgemma.engine.graph import ENTERING, LEAVING, ROW_INPUTS, fresh_names, moved, pool_names
from dgemma.geometry import Geometry
from dgemma.manifest import Binding, Link, Manifest
from dgemma.model.attention import RowIndex
from dgemma.model.checkpoint import parameter_shapes
from dgemma.precision import BLOCK_SCALE, ROW_SCALE

if TYPE_CHECKING:
    from dgemma.model.network import Network
    from tests.dgemma.engine.fake_gpu import FakeTensorRT

VERSION = "1.7.1.116"
ALIGNMENT = 256


class DataType(Enum):
    FLOAT, HALF, BF16, INT32, INT64, BOOL, UINT8, FP8, INT4, FP4 = range(10)


class TensorIOMode(Enum):
    NONE, INPUT, OUTPUT = range(3)


class TensorLocation(Enum):
    DEVICE, HOST = range(2)


class ExecutionContextAllocationStrategy(Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class DynamicShapesKernelSpecializationStrategy(Enum):
    LAZY, EAGER, NONE = range(3)


class CudaGraphStrategy(Enum):
    DISABLED, WHOLE_GRAPH_CAPTURE = range(2)


class ILogger:
    class Severity(Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        self._initialised = True

    def log(self, severity: ILogger.Severity, msg: str) -> None:
        raise NotImplementedError("ILogger.log")


# As a binding's dtype is called, what it is in memory.
_DTYPES = {
    "F32": (DataType.FLOAT, torch.float32),
    "BF16": (DataType.BF16, torch.bfloat16),
    "I64": (DataType.INT64, torch.int64),
    "BOOL": (DataType.BOOL, torch.bool),
    "F8_E4M3": (DataType.FP8, torch.float8_e4m3fn),
    "I4": (DataType.INT4, torch.uint8),
    "F4": (DataType.FP4, torch.uint8),
}


def _is(value: Any, kind: type | tuple[type, ...], what: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise TypeError(f"{what}: incompatible argument {value!r}")
    return value


def plan_bytes(manifest: Manifest, link: Link | None = None) -> bytes:
    """What `deserialize_cuda_engine` takes for the only plan of a manifest, or for `link`'s.

    Which layers of a network are a plan's is known from its pools.
    """
    link = link or manifest.links[0]
    known = {b.name: b for b in manifest.bindings}
    own = [replace(known[moved(name, link.first_layers[0])], name=name) for name in link.names]
    depth = sum(name.startswith("pool_k.") for name in link.names)
    geometry = replace(manifest.geometry, layers=manifest.geometry.layers[:depth])
    return json.dumps(
        {
            "geometry": geometry.to_dict(),
            "policy": manifest.policy.to_dict(),
            "bindings": [vars(binding) for binding in own],
            "profiles": manifest.profiles,
        }
    ).encode()


class IRuntimeCache:
    def __init__(self) -> None:
        self._kernels: set[str] = set()

    def deserialize(self, blob: bytes) -> bool:
        known = json.loads(_is(blob, bytes, "blob"))
        if known["version"] != VERSION:
            return False
        self._kernels |= set(known["kernels"])
        return True

    def serialize(self) -> bytes:
        return json.dumps({"version": VERSION, "kernels": sorted(self._kernels)}).encode()

    def reset(self) -> None:
        self._kernels.clear()


class IRuntimeConfig:
    _types: ClassVar[dict[str, type]] = {
        "dynamic_shapes_kernel_specialization_strategy": DynamicShapesKernelSpecializationStrategy,
        "cuda_graph_strategy": CudaGraphStrategy,
    }

    def __init__(self) -> None:
        self._strategy = ExecutionContextAllocationStrategy.STATIC
        self._cache: IRuntimeCache | None = None
        self.dynamic_shapes_kernel_specialization_strategy = (
            DynamicShapesKernelSpecializationStrategy.LAZY
        )
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            if name not in self._types:
                raise AttributeError(f"IRuntimeConfig has no attribute {name!r}")
            _is(value, self._types[name], name)
        object.__setattr__(self, name, value)

    def set_execution_context_allocation_strategy(
        self, strategy: ExecutionContextAllocationStrategy
    ) -> None:
        self._strategy = _is(strategy, ExecutionContextAllocationStrategy, "strategy")

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = _is(cache, IRuntimeCache, "cache")
        return True


class ICudaEngine:
    def __init__(self, world: FakeTensorRT, plan: dict[str, Any]) -> None:
        self._world = world
        self._geometry = Geometry.from_dict(plan["geometry"])
        self._policy = plan["policy"]
        parts = (b | {"shape": tuple(b["shape"])} for b in plan["bindings"])
        self._bindings = {b["name"]: Binding(**b) for b in parts}
        self._profiles: list[dict[str, list[int]]] = plan["profiles"]
        self._parameters = [n for n in parameter_shapes(self._geometry) if n in self._bindings]
        ends = ("", BLOCK_SCALE, ROW_SCALE)
        names = {name + end for name in self._parameters for end in ends}
        self._weights = names & self._bindings.keys()

    num_io_tensors = property(lambda self: len(self._bindings))
    num_optimization_profiles = property(lambda self: len(self._profiles))

    def get_tensor_name(self, index: int) -> str:
        return list(self._bindings)[_is(index, int, "index")]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if self._bindings[name].is_input else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return _DTYPES[self._bindings[name].dtype][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._bindings[name].shape

    def get_tensor_location(self, name: str) -> TensorLocation:
        _is(self._bindings[name], Binding, "name")
        return TensorLocation.DEVICE

    def create_runtime_config(self) -> IRuntimeConfig:
        if not self._world.rtx:
            raise AttributeError("only used of RTX here")
        return IRuntimeConfig()

    def create_execution_context(
        self, how: IRuntimeConfig | ExecutionContextAllocationStrategy
    ) -> IExecutionContext:
        if isinstance(how, IRuntimeConfig):
            eager = DynamicShapesKernelSpecializationStrategy.EAGER
            assert how.dynamic_shapes_kernel_specialization_strategy == eager
            strategy, cache = how._strategy, how._cache
        else:
            strategy = _is(how, ExecutionContextAllocationStrategy, "strategy")
            cache = None
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        return IExecutionContext(self, cache)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, cache: IRuntimeCache | None) -> None:
        self._engine, self._cache = engine, cache
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory: tuple[int, int] | None = None
        self._profile: int | None = None
        self._changes = 0
        self._specialised: int | None = None  # the change that its kernels belong to

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        _is(stream_handle, int, "stream_handle")
        self._changes += 1
        self._shapes.clear()
        self._profile = _is(profile_index, int, "profile_index")
        return 0 <= profile_index < len(self._engine._profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        binding = self._engine._bindings[_is(name, str, "name")]
        assert self._profile is not None, "a profile comes before shapes"
        if not binding.is_input or len(_is(shape, tuple, "shape")) != len(binding.shape):
            return False
        limits = self._engine._profiles[self._profile]
        size = {
            "ids": "rows",
            "soft": "rows",
            ENTERING: "rows",
            "context_index": "context",
            "room": "capacity",
        }
        size |= {"pair_to": "pairs", "pair_from": "pairs", "ring_index": "ring"}
        if (known := size.get(name)) and not limits[known][0] <= shape[0] <= limits[known][1]:
            return False
        self._changes += 1
        self._shapes[name] = shape
        return all(a in (-1, b) for a, b in zip(binding.shape, shape, strict=True))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        _is(self._engine._bindings[_is(name, str, "name")], Binding, "name")
        assert _is(memory, int, "memory") and memory % ALIGNMENT == 0
        self._changes += 1
        self._addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        return [
            name
            for name, b in self._engine._bindings.items()
            if b.is_input and -1 in b.shape and name not in self._shapes
        ]

    def update_device_memory_size_for_shapes(self) -> int:
        assert not self.infer_shapes(), "all shapes come first"
        names = ("ids", ENTERING, "context_index", "room")
        return math.prod(size for name in names for size in self._shapes.get(name, ()))

    def set_device_memory(self, memory: int, size: int) -> None:
        assert _is(size, int, "size") >= self.update_device_memory_size_for_shapes()
        self._changes += 1
        self._memory = (_is(memory, int, "memory"), size)

    def execute_async_v3(self, stream_handle: int) -> bool:
        world = self._engine._world
        assert _is(stream_handle, int, "stream_handle") == world.stream, "the engine's own stream"
        assert not self.infer_shapes() and self._memory is not None
        assert self._addresses.keys() == self._engine._bindings.keys(), "every address is set"
        if world.captured is not None:
            assert self._specialised == self._changes, "kernels of this shape are made by a run"
            world.captured.append((self, self._changes))
            return True
        self._specialised = self._changes
        if self._cache is not None:
            self._cache._kernels.add(str(sorted(self._shapes.items())[:6]))
        self._execute()
        return True

    def _execute(self) -> None:
        world, engine = self._engine._world, self._engine
        world.runs += 1
        network = world.network(engine, self._addresses, self._read)
        outputs, void = {}, False
        with torch.inference_mode():
            if ENTERING in engine._bindings:
                assert self._addresses[ENTERING] != self._addresses.get(LEAVING)
                x = self._read(ENTERING).float()
            else:
                ids, soft, denoise = map(self._read, ("ids", "soft", "denoise"))
                x = network.enter(ids, soft.float(), denoise)
            if engine._geometry.layers:
                x, outputs, void = self._layers(network, x)
        for name, tensor in {LEAVING: x, **outputs}.items():
            if (binding := engine._bindings.get(name)) is None:
                assert name == LEAVING, "a network in one plan"
                continue
            kind = _DTYPES[binding.dtype][1]
            assert len(tensor.shape) == len(binding.shape)
            if void and name != "load":
                tensor = torch.full_like(tensor, torch.nan)  # nothing may depend on it
            _at(self._addresses[name], tuple(tensor.shape), kind).copy_(tensor)

    def _layers(self, network: Network, x: Tensor) -> tuple[Tensor, dict[str, Tensor], bool]:
        """What leaves the layers, the other outputs, and whether they are void."""
        g, room = self._engine._geometry, self._shapes["room"][0]
        rows = {name: self._read(name) for name in ROW_INPUTS[2:]}
        assert int(rows["slot"].max()) < self._shapes["pool_k.0"][0]
        pools = [self._read(name).float() for name in pool_names(g)]
        # An overflow before has left nothing to look at.
        x, load, fresh = network.pass_layers(
            x.nan_to_num(), RowIndex(**rows), torch.arange(room), pools
        )
        outputs = dict(zip(fresh_names(g), fresh, strict=True))
        return x, {"hidden": network.norm(x), "load": load, **outputs}, int(load) > room

    def _read(self, name: str) -> Tensor:
        binding = self._engine._bindings[name]
        *rest, last = self._shapes.get(name, binding.shape)
        packed = binding.dtype in ("I4", "F4")
        shape = (*rest, last // 2 if packed else last)
        return _at(self._addresses[name], shape, _DTYPES[binding.dtype][1])


def _at(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor that stands at an address."""
    nbytes = math.prod(shape) * dtype.itemsize
    if not nbytes:
        return torch.empty(shape, dtype=dtype)
    memory = (ctypes.c_uint8 * nbytes).from_address(address)
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(shape)
