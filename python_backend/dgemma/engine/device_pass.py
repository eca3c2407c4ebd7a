"""One shape of pass on a device: an execution context, its addresses, and a graph of it.

Knows the order that TensorRT asks for: profile, shapes, addresses, memory, a run, a capture; knows
nothing of what a pass computes. A captured graph holds the addresses and the state of its context,
so every graph has a context of its own, and none is changed once it is captured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from dgemma.engine.device import Device
from dgemma.errors import EngineFailure

Shapes = Mapping[str, tuple[int, ...]]


class DevicePass:
    """Runs as often as one likes; inputs and outputs are where the addresses say."""

    def __init__(
        self,
        context: Any,
        profile: int,
        shapes: Shapes,
        addresses: Mapping[str, int],
        scratch: Callable[[int], Tensor],
        device: Device,
    ) -> None:
        """`shapes` of the dynamic inputs, `addresses` of everything.

        `scratch` gives memory of at least so many bytes, which passes may share: no two run at the
        same time.
        """
        self._context, self._device = context, device
        self._replay: Callable[[], None] | None = None
        if not context.set_optimization_profile_async(profile, device.stream):
            raise EngineFailure(f"the plan has no profile {profile}")
        device.wait()
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise EngineFailure(f"the plan does not take {name} of shape {list(shape)}")
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise EngineFailure(f"the plan does not take an address for {name}")
        if missing := context.infer_shapes():
            raise EngineFailure(f"the plan is not told the shapes of {', '.join(missing)}")
        self.scratch = scratch(max(1, int(context.update_device_memory_size_for_shapes())))
        context.set_device_memory(self.scratch.data_ptr(), len(self.scratch))

    def run(self) -> None:
        """Put the pass into the device's stream."""
        if self._replay is not None:
            self._replay()
        else:
            self._enqueue()

    def capture(self) -> None:
        """From now on a pass is one launch; after a run, which made the kernels of its shape."""
        self._device.wait()
        self._replay = self._device.capture(self._enqueue)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._device.stream):
            raise EngineFailure("TensorRT could not run the pass; its log says why")
