"""The network run by eager torch on the host: the reference that other engines are held to.

Knows no graph and no target; `dgemma replay` without an engine uses it, as tests do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dgemma.engine.base import Capacity, Row, Snapshot
from dgemma.engine.batch import check, to_arrays
from dgemma.engine.kv_pool import KVPool
from dgemma.geometry import Geometry
from dgemma.model.attention import RowIndex
from dgemma.model.checkpoint import Checkpoint, fill, load_tensors
from dgemma.model.network import Network


class TorchReference:
    """An Engine in fp32; every pass allocates, nothing is tuned."""

    reruns = 0

    def __init__(self, network: Network, capacity: Capacity) -> None:
        self.geometry = network.geometry
        self.capacity = capacity
        self.network = network
        self.pool = KVPool(network.geometry, capacity.slots, capacity.context)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, capacity: Capacity) -> TorchReference:
        geometry = Geometry.from_checkpoint(checkpoint.directory)
        with torch.device("meta"):
            network = Network(geometry)
        fill(network, load_tensors(checkpoint, geometry), torch.float32)
        return cls(network, capacity)

    def meanwhile(self, call: Callable[[], object]) -> None:
        call()

    def snapshot(self, slot: int, start: int, stop: int) -> Snapshot:
        return self.pool.read(slot, start, stop)

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        self.pool.put(slot, snapshot)

    def embedding(self) -> Tensor:
        return self.network.embed_tokens.weight

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row]) -> Tensor:
        check(rows, self.geometry, self.capacity)
        inputs = {
            name: torch.from_numpy(array)
            for name, array in to_arrays(rows, self.geometry, self.capacity).items()
        }
        ids, soft = inputs.pop("ids"), inputs.pop("soft")
        # Every token on one expert is the worst case, so nothing ever overflows here.
        room = torch.arange(ids.numel())
        pools = [torch.from_numpy(array) for array in self.pool.arrays]
        hidden: Tensor
        hidden, _, fresh = self.network(ids, soft, RowIndex(**inputs), room, pools)
        self.pool.write(rows, [new.numpy() for new in fresh])
        return hidden
