"""The two TensorRTs that run plans, and every difference between them.

Knows how each is imported and makes execution contexts; knows nothing of what a plan computes.
https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/index.html
https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/_static/python-api/index.html
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dgemma.engine.graph import moved
from dgemma.engine.runtime_cache import RuntimeCache
from dgemma.errors import ConfigurationError
from dgemma.manifest import REBUILD, Binding, Link, Manifest

logger = logging.getLogger(__name__)

# TensorRT's names of what safetensors calls so.
_DTYPES = {
    "F32": "FLOAT",
    "BF16": "BF16",
    "F16": "HALF",
    "I64": "INT64",
    "I32": "INT32",
    "BOOL": "BOOL",
    "U8": "UINT8",
    "F8_E4M3": "FP8",
    "I4": "INT4",
    "F4": "FP4",
}


class Plan:
    """A plan on the device; contexts take their memory from whoever asks for them."""

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        link: Link,
        cache: RuntimeCache,
        load: Callable[[str], Any] = importlib.import_module,
    ) -> None:
        """Raises ConfigurationError where TensorRT does not take the plan, with its own reason."""
        self.path = directory / link.file
        trt = self._trt = load(manifest.runtime.flavour)
        self._log = _logger(trt)
        self._runtime = trt.Runtime(self._log)
        self.engine = self._runtime.deserialize_cuda_engine(self.path.read_bytes())
        if self.engine is None:
            reason = self._log.first_error or "no reason was given"
            raise ConfigurationError(
                f"{self.path}: {manifest.runtime.flavour} {trt.__version__} cannot load it: "
                f"{reason}; a plan is loaded on the GPU that it was compiled for; {REBUILD}"
            )
        self._check(manifest, link)
        self._cache = cache
        self._kernels: Any = None
        self._config = self._rtx_config() if manifest.runtime.flavour == "tensorrt_rtx" else None

    def context(self) -> Any:
        """A new one, without memory for activations."""
        managed = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return self.engine.create_execution_context(self._config or managed)

    def keep_kernels(self) -> None:
        """Write what was compiled for this GPU where the next start finds it."""
        if self._kernels is not None:
            self._cache.write(bytes(self._kernels.serialize()))

    def _rtx_config(self) -> Any:
        """RTX compiles kernels on the GPU, for each shape anew; they are kept on disk."""
        trt, config = self._trt, self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        # A graph holds the kernels that it was captured with, so a shape's own must be there by
        # then. Graphs are captured here, once a shape, and not by RTX.
        config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        self._kernels = config.create_runtime_cache()
        if (known := self._cache.read()) and not self._kernels.deserialize(known):
            logger.info("%s: of another machine or version; made anew", self._cache.path)
        if not config.set_runtime_cache(self._kernels):
            logger.warning("kernels are not kept: TensorRT refused the cache")
        return config

    def _check(self, manifest: Manifest, link: Link) -> None:
        """ConfigurationError where the plan is not what its manifest says: memory depends on it."""
        engine, trt = self.engine, self._trt
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        every = {b.name: b for b in manifest.bindings}
        said = {name: every[moved(name, link.first_layers[0])] for name in link.names}
        if odd := sorted(said.keys() ^ set(names)):
            raise ConfigurationError(
                f"{self.path}: plan and manifest differ in {', '.join(odd[:5])}; {REBUILD}"
            )
        for name in names:
            binding = said[name]
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            dtype = engine.get_tensor_dtype(name).name
            shape = tuple(engine.get_tensor_shape(name))
            found = Binding(name, dtype, shape, is_input)
            if found != Binding(name, _DTYPES[binding.dtype], binding.shape, binding.is_input):
                raise ConfigurationError(
                    f"{self.path}: {name} is {found}, the manifest says {binding}; {REBUILD}"
                )
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise ConfigurationError(f"{self.path}: {name} is not on the device; {REBUILD}")


def _logger(trt: Any) -> Any:
    """An `ILogger` that writes to Python's log and keeps the first error: it is the cause."""
    severities = trt.ILogger.Severity
    levels = {
        severities.VERBOSE: logging.NOTSET,
        severities.INFO: logging.DEBUG,
        severities.WARNING: logging.WARNING,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first_error: str | None = None

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.ERROR)
            if level == logging.ERROR and self.first_error is None:
                self.first_error = message
            if level != logging.NOTSET:
                logger.log(level, "%s", message)

    return Logger()
