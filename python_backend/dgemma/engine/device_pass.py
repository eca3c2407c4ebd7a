"""One shape of pass on a device: execution contexts, their addresses, and a graph of them.

Knows the order that TensorRT asks for: profile, shapes, addresses, memory, a run, a capture; knows
nothing of what a pass computes. A captured graph holds the addresses and the state of its contexts:
they are its own, one for each execution of a plan, and none is changed once it is captured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from dgemma.engine.device import Device
from dgemma.errors import EngineFailure


class Execution(NamedTuple):
    """Of one plan, as part of a pass."""

    context: Any
    shapes: Mapping[str, tuple[int, ...]]  # of the dynamic inputs
    addresses: Mapping[str, int]  # of everything


class DevicePass:
    """Runs as often as one likes; inputs and outputs are where the addresses say."""

    def __init__(
        self,
        executions: Sequence[Execution],
        profile: int,
        scratch: Callable[[int], Tensor],
        device: Device,
    ) -> None:
        """One execution after the other is the pass.

        `scratch` gives memory of at least so many bytes, which executions and passes share: no two
        run at the same time.
        """
        self._contexts, self._device = [e.context for e in executions], device
        self._replay: Callable[[], None] | None = None
        needed = max(self._prepare(execution, profile) for execution in executions)
        self.scratch = scratch(max(1, needed))
        for context in self._contexts:
            context.set_device_memory(self.scratch.data_ptr(), len(self.scratch))

    def _prepare(self, execution: Execution, profile: int) -> int:
        """Tell a context all but its memory; returns how much of that it needs."""
        context, shapes, addresses = execution
        if not context.set_optimization_profile_async(profile, self._device.stream):
            raise EngineFailure(f"the plan has no profile {profile}")
        self._device.wait()
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise EngineFailure(f"the plan does not take {name} of shape {list(shape)}")
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise EngineFailure(f"the plan does not take an address for {name}")
        if missing := context.infer_shapes():
            raise EngineFailure(f"the plan is not told the shapes of {', '.join(missing)}")
        return int(context.update_device_memory_size_for_shapes())

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
        for context in self._contexts:
            if not context.execute_async_v3(self._device.stream):
                raise EngineFailure("TensorRT could not run the pass; its log says why")
