"""The two TensorRTs that compile plans, and every difference between them.

Knows how each is imported and aimed at a GPU; knows nothing of graphs. Both have the same builder
and the same ONNX parser:
https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/index.html
https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/_static/python-api/index.html
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Protocol

from dgemma.errors import ConfigurationError


class Flavour(Protocol):
    """One of them. A compute capability is written as NVIDIA does: 12.1."""

    @property
    def name(self) -> str:
        """Of the Python module."""
        ...

    def load(self) -> Any:
        """The module; ConfigurationError says how to get it."""
        ...

    def aim(self, trt: Any, config: Any, compute_capability: str) -> None:
        """Have `config` compile for one kind of GPU; ConfigurationError where it cannot."""
        ...


@dataclass(frozen=True)
class TensorRTForRTX:
    """Compiles ahead of time, on any machine, for the GPUs of desktops, workstations and Spark."""

    name: str = "tensorrt_rtx"

    def load(self) -> Any:
        return _load(self.name, "pip install tensorrt-rtx")

    def aim(self, trt: Any, config: Any, compute_capability: str) -> None:
        known = trt.ComputeCapability.__members__
        member = "SM" + compute_capability.replace(".", "")
        if member not in known:
            kinds = ", ".join(name for name in known if name.startswith("SM"))
            raise ConfigurationError(
                f"{self.name} {trt.__version__} does not compile for {member}; it does for {kinds}"
            )
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(known[member], 0):
            raise ConfigurationError(f"{self.name} {trt.__version__} refused to target {member}")


@dataclass(frozen=True)
class TensorRT:
    """Compiles on the GPU that will run the plan, because it times kernels there."""

    name: str = "tensorrt"

    def load(self) -> Any:
        return _load(self.name, "build in NVIDIA's Triton container, which has it")

    def aim(self, trt: Any, config: Any, compute_capability: str) -> None:
        here = _device_capability()
        if here != compute_capability:
            raise ConfigurationError(
                f"{self.name} compiles for the GPU of this machine, of compute capability "
                f"{here or '(no GPU)'}, not for {compute_capability}; build on a GPU of that kind"
            )


FLAVOURS: dict[str, Flavour] = {f.name: f for f in (TensorRTForRTX(), TensorRT())}


def _load(module: str, remedy: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken installation raises whatever it likes
        raise ConfigurationError(f"{module} does not import: {error}; {remedy}") from None


def _device_capability() -> str | None:
    import torch  # takes seconds, and only one flavour asks

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}"
