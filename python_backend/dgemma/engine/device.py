"""Device memory, the stream that an engine computes on, and graphs of what was put into it.

Knows torch.cuda; knows nothing of engines. Whoever calls an engine has a stream of its own: what
it queued before a pass is done before the pass, and what it queues after sees the pass done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from dgemma.errors import ConfigurationError
from dgemma.machine import host_memory


class Device(Protocol):
    """One device and one stream of it."""

    @property
    def where(self) -> torch.device: ...

    @property
    def stream(self) -> int:
        """The stream as a runtime takes it."""
        ...

    def allocate(self, nbytes: int) -> Tensor:
        """Zeros on the device, uint8 `[nbytes]`, at an address that every runtime takes."""
        ...

    def staging(self, nbytes: int) -> Tensor:
        """Host memory, uint8 `[nbytes]`, that the device copies from and to on its own."""
        ...

    @contextmanager
    def turn(self) -> Iterator[None]:
        """What torch does meanwhile goes into the stream."""
        ...

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        """What `call` puts into the stream, which is not run now, to be run at any time."""
        ...

    def wait(self) -> None:
        """Return once all that was put into the stream is done."""
        ...

    def free_bytes(self) -> int: ...


class CudaDevice:
    """The current GPU of torch."""

    def __init__(self) -> None:
        """Raises ConfigurationError where torch has no GPU."""
        if not torch.cuda.is_available():
            raise ConfigurationError(
                f"torch {torch.__version__} sees no GPU; check the driver with `nvidia-smi`, and "
                "that torch was built for CUDA; without a GPU select an engine for target cpu"
            )
        self.where = torch.device("cuda", torch.cuda.current_device())
        self._stream = torch.cuda.Stream(self.where)
        # No two graphs run at once, so what one needs in between is memory for all.
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def stream(self) -> int:
        return int(self._stream.cuda_stream)

    def allocate(self, nbytes: int) -> Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8, device=self.where)

    def staging(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    @contextmanager
    def turn(self) -> Iterator[None]:
        caller = torch.cuda.current_stream(self.where)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            yield
        caller.wait_stream(self._stream)

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Other threads, Triton's, may go on using CUDA meanwhile.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            call()
        return graph.replay

    def wait(self) -> None:
        self._stream.synchronize()

    def free_bytes(self) -> int:
        free = int(torch.cuda.mem_get_info(self.where)[0])
        # Where memory is shared with the host CUDA takes what the page cache holds for used.
        shared = torch.cuda.get_device_properties(self.where).is_integrated
        return max(free, host_memory()[1]) if shared else free


class HostDevice:
    """Host memory and this thread in place of a GPU: nothing is captured, all is done at once."""

    where = torch.device("cpu")
    stream = 0

    def allocate(self, nbytes: int) -> Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8)

    def staging(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    @contextmanager
    def turn(self) -> Iterator[None]:
        yield

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        return call

    def wait(self) -> None:
        pass

    def free_bytes(self) -> int:
        return host_memory()[1]
