"""What stands for a GPU behind the fake of TensorRT's runtime: memory, a stream, and the network.

Weights are read where they are bound and de-quantised, so a wrong byte anywhere gives wrong hidden
states.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dgemma.dequantize import dequantize
from dgemma.model.checkpoint import fill
from dgemma.model.network import Network
from dgemma.precision import BLOCK_SCALE, ROW_SCALE, Policy
from tests.dgemma.engine import fake_tensorrt_runtime as api
from tests.dgemma.engine.fake_tensorrt_runtime import (
    ALIGNMENT,
    VERSION,
    ICudaEngine,
    IExecutionContext,
    ILogger,
)


class HostDevice:
    """Host memory in place of a device's, and the stream that the runtime is given."""

    where = torch.device("cpu")

    def __init__(self, trt: FakeTensorRT, free: int = 2**40) -> None:
        self.trt, self.stream, self.free = trt, trt.stream, free
        self.waits, self.captures, self.allocated = 0, 0, 0

    def allocate(self, nbytes: int) -> Tensor:
        self.allocated += nbytes
        memory = torch.zeros(nbytes + ALIGNMENT, dtype=torch.uint8)
        first = -memory.data_ptr() % ALIGNMENT
        return memory[first : first + nbytes]

    def staging(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    @contextmanager
    def turn(self) -> Iterator[None]:
        yield

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        return self.trt.capture(call)

    def wait(self) -> None:
        self.waits += 1

    def free_bytes(self) -> int:
        return self.free - self.allocated


class FakeTensorRT:
    """The module, and what stands for the GPU behind it."""

    def __init__(self, rtx: bool = True, version: str = VERSION) -> None:
        self.rtx, self.__version__ = rtx, version
        self.stream = 7
        self.captured: list[tuple[IExecutionContext, int]] | None = None
        self.runs = 0
        self._networks: dict[frozenset[tuple[str, int]], Network] = {}
        self.DataType, self.ILogger = api.DataType, ILogger
        self.TensorIOMode, self.TensorLocation = api.TensorIOMode, api.TensorLocation
        self.ExecutionContextAllocationStrategy = api.ExecutionContextAllocationStrategy
        if rtx:
            self.DynamicShapesKernelSpecializationStrategy = (
                api.DynamicShapesKernelSpecializationStrategy
            )
            self.CudaGraphStrategy = api.CudaGraphStrategy

    def Runtime(self, logger: ILogger) -> Any:
        if not api._is(logger, ILogger, "logger").__dict__.get("_initialised"):
            raise TypeError("ILogger.__init__() must be called when overriding __init__")

        def deserialize(serialized_engine: bytes) -> ICudaEngine | None:
            try:
                return ICudaEngine(self, json.loads(api._is(serialized_engine, bytes, "plan")))
            except ValueError:
                severity = ILogger.Severity.ERROR
                logger.log(severity, "Serialization assertion plan.header.size == blobSize failed")
                logger.log(severity, "catchCudaError")
                return None

        return SimpleNamespace(deserialize_cuda_engine=deserialize)

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        """What a driver does with a stream that is being captured."""
        self.captured = graph = []
        try:
            call()
        finally:
            self.captured = None

        def replay() -> None:
            for context, changes in graph:
                assert context._changes == changes, "its context changed after the capture"
                context._execute()

        return replay

    def network(
        self, engine: ICudaEngine, addresses: dict[str, int], read: Callable[[str], Tensor]
    ) -> Network:
        """What the bound weights make; they never move and never change."""
        weights = frozenset((n, at) for n, at in addresses.items() if n in engine._weights)
        if weights not in self._networks:
            with torch.device("meta"):
                network = Network(engine._geometry)
            fill(network, ((n, _real(engine, n, read)) for n in engine._parameters), torch.float32)
            self._networks[weights] = network
        return self._networks[weights]


def _real(engine: ICudaEngine, name: str, read: Callable[[str], Tensor]) -> Tensor:
    format = Policy.from_dict(engine._policy).format_of(name)
    if not format.is_quantized:
        return read(name).clone()
    block = read(name + BLOCK_SCALE).clone() if format.block_scale else None
    row = read(name + ROW_SCALE).clone() if format.row_scale else None
    return dequantize(format, read(name).clone(), block, row)
