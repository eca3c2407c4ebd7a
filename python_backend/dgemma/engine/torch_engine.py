"""The engine of every GPU: the network's operations as kernels, captured in graphs.

Knows the order of a load and of a pass; the operations, and how weights lie in memory, are known
beside it. It has no plan: what it needs is compiled where it is loaded. Inputs, weights and pools
are on the device once, at addresses that never change; the host reads nothing of a pass.
Shapes: R rows of L tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dgemma.compatibility import check_engine
from dgemma.engine import reference
from dgemma.engine.base import NO_PARTNER, Capacity, Row, Snapshot
from dgemma.engine.batch import check
from dgemma.engine.binding_plan import Arena
from dgemma.engine.buckets import LEAST_CONTEXT, doubling, first_of
from dgemma.engine.device import CudaDevice, Device
from dgemma.engine.device_memory import check_memory, view
from dgemma.engine.device_pools import put_positions, read_positions
from dgemma.engine.device_weights import Progress, load_weights
from dgemma.engine.graph import pool_names
from dgemma.engine.kernels.rows import PassRows
from dgemma.engine.kv_pool import KVPool
from dgemma.engine.operations import Operations
from dgemma.engine.torch_network import TorchNetwork
from dgemma.engine.torch_weights import WeightReader, arena_of
from dgemma.errors import ConfigurationError, EngineFailure
from dgemma.geometry import Geometry
from dgemma.machine import Machine
from dgemma.precision import Policy
from dgemma.store_manifest import StoreManifest

SAID = 5  # numbers that say where a row stands


class Bucket(NamedTuple):
    """The sizes that a pass is run in."""

    rows: int
    context: int  # tokens before a row, at most


class TorchEngine:
    """An Engine whose hidden states stay on the device."""

    reruns = 0  # no expert has a capacity

    def __init__(
        self,
        weights: WeightReader,
        capacity: Capacity,
        device: Device,
        *,
        operations: Operations | None = None,
        dtype: torch.dtype | None = None,
        captured: bool = True,
        place: Path = Path("weights"),
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        """Make every shape of pass ready; without `captured`, none, and each is run as it comes.

        `operations` are the device's own where they are not given, activations are of `dtype`, or
        else of the weights' own. Raises ConfigurationError where memory is lacking.
        """
        geometry = self.geometry = weights.geometry
        self.capacity, self.weights, self.device, self._place = capacity, weights, device, place
        kind = dtype or activations_of(weights.policy)
        layout = pool_arena(geometry, capacity, kind)
        check_memory(place, {"K/V pools": layout.nbytes}, device.free_bytes())
        memory = device.allocate(layout.nbytes)
        self.pools = [view(layout, memory, name) for name in layout.places]
        self._network = TorchNetwork.of(
            geometry, weights.network(), self.pools, operations or operations_of(device)
        )
        size = (capacity.rows, geometry.canvas_length, geometry.hidden_size)
        self._ids = torch.zeros(size[:2], dtype=torch.int64, device=device.where)
        self._soft = torch.zeros(size, dtype=kind, device=device.where)
        self._hidden = torch.zeros(size, dtype=kind, device=device.where)
        # Each of the numbers begins at a multiple of 16 bytes, for which kernels are compiled.
        width = -(-capacity.rows // 4) * 4
        self._described = torch.zeros(SAID, width, dtype=torch.int32, device=device.where)
        self._later: list[Callable[[], object]] = []
        self._passes: dict[Bucket, Callable[[], None]] = {}
        if captured:
            self._prepare(progress)

    def meanwhile(self, call: Callable[[], object]) -> None:
        self._later.append(call)

    def embedding(self) -> Tensor:
        return self._network.weights.embedding

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row]) -> Tensor:
        check(rows, self.geometry, self.capacity)
        bucket = self._bucket(rows)
        try:
            with self.device.turn():
                self._describe(rows)
                self._passes.get(bucket, partial(self._run, bucket))()
        except Exception as error:
            raise EngineFailure(f"the GPU could not run the pass: {error}") from error
        # The device has work: whatever the host is to do beside it costs nothing.
        later, self._later = self._later, []
        for call in later:
            call()
        return self._hidden[: len(rows)]

    @torch.inference_mode()
    def snapshot(self, slot: int, start: int, stop: int) -> Snapshot:
        with self.device.turn():
            return read_positions(self.geometry, slot, start, stop, self.pools)

    @torch.inference_mode()
    def restore(self, slot: int, snapshot: Snapshot) -> None:
        with self.device.turn():
            put_positions(self.geometry, slot, snapshot, self.pools)

    def _bucket(self, rows: Sequence[Row]) -> Bucket:
        """The smallest that holds a pass."""
        longest = max(row.start for row in rows)
        return Bucket(
            first_of(doubling(1, self.capacity.rows), len(rows)),
            first_of(doubling(LEAST_CONTEXT, self.capacity.context), longest),
        )

    def _describe(self, rows: Sequence[Row]) -> None:
        """Put a pass into the inputs; rows beyond it have no valid token."""
        padding = self._described.shape[1] - len(rows)
        values = [
            (row.start, row.valid, row.slot, int(row.denoise), row.partner) for row in rows
        ] + padding * [(0, 0, 0, 1, NO_PARTNER)]
        # From memory that is not pinned: it is read to its end, and free again, when this returns.
        said = torch.tensor(values, dtype=torch.int32).T.contiguous()
        self._described.copy_(said, non_blocking=True)
        for index, row in enumerate(rows):
            self._ids[index].copy_(row.ids, non_blocking=True)
            if row.soft is None:
                self._soft[index].zero_()
            else:
                self._soft[index].copy_(row.soft, non_blocking=True)

    def _run(self, bucket: Bucket) -> None:
        ids, soft = self._ids[: bucket.rows], self._soft[: bucket.rows]
        start, valid, slot, denoise, partner = self._described[:, : bucket.rows]
        rows = PassRows(self.geometry.canvas_length, start, valid, slot, denoise.bool(), partner)
        out = self._network.forward(ids.flatten(), soft.flatten(0, 1), rows, bucket.context)
        self._hidden[: bucket.rows].copy_(out.view_as(soft))

    @torch.inference_mode()
    def _prepare(self, progress: Progress) -> None:
        """Run and capture every shape, so that no request waits for kernels to be compiled."""
        buckets = [
            Bucket(rows, context)
            for rows in reversed(doubling(1, self.capacity.rows))
            for context in reversed(doubling(LEAST_CONTEXT, self.capacity.context))
        ]
        ids = torch.zeros(self.geometry.canvas_length, dtype=torch.int64)
        row = Row(ids, 0, 0, len(ids), denoise=True, partner=NO_PARTNER)
        for done, bucket in enumerate(buckets):
            with self.device.turn():
                self._describe([row])
                try:
                    self._run(bucket)
                    self._passes[bucket] = self.device.capture(partial(self._run, bucket))
                except torch.OutOfMemoryError as error:
                    raise ConfigurationError(
                        f"{self._place}: no device memory is left for a pass of {bucket.rows} rows "
                        f"({error}); lower DGEMMA_SLOTS or NIM_MAX_MODEL_LEN"
                    ) from None
                except Exception as error:  # compilers and drivers raise whatever they like
                    raise EngineFailure(f"{self._place}: kernels cannot be run: {error}") from error
            progress("shapes", done + 1, len(buckets))


def load(
    directory: Path,
    store: Path,
    capacity: Capacity,
    *,
    machine: Machine | None = None,
    device: Callable[[], Device] = CudaDevice,
    snapshot_bytes: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> TorchEngine:
    """With the weights of a store, for an engine directory that says what they are.

    Snapshots stay on the device: up to `snapshot_bytes` of them have to find room. Raises
    ConfigurationError naming the file that is missing, corrupt or for another machine, or the
    memory that is lacking, and EngineFailure where a kernel cannot be compiled or run.
    """
    here = Machine.here() if machine is None else machine
    # Weights are hashed while they are read, and no request is taken before.
    manifest = check_engine(directory, here, store=store, deep=False)
    geometry, policy, where = manifest.geometry, manifest.policy, device()
    arena = arena_of(geometry, policy)
    needs = {
        "weights": arena.nbytes,
        "K/V pools": pool_arena(geometry, capacity, activations_of(policy)).nbytes,
        "prefix cache": snapshot_bytes,
    }
    check_memory(directory, needs, where.free_bytes())
    memory = where.allocate(arena.nbytes)
    load_weights(store, StoreManifest.read(store), arena, memory, where, progress)
    weights = WeightReader(geometry, policy, arena, memory)
    return TorchEngine(weights, capacity, where, place=directory, progress=progress)


def activations_of(policy: Policy) -> torch.dtype:
    """What is not quantised decides what is computed in."""
    return torch.float32 if policy.rest == "fp32" else torch.bfloat16


def pool_arena(geometry: Geometry, capacity: Capacity, dtype: torch.dtype) -> Arena:
    """Places for K then V of each layer, `[slots, G, W or N, d]`."""
    spelled = "F32" if dtype == torch.float32 else "BF16"
    shapes = KVPool.shapes(geometry, capacity.slots, capacity.context)
    names = pool_names(geometry)
    return Arena.of((name, spelled, shape) for name, shape in zip(names, shapes, strict=True))


def operations_of(device: Device) -> Operations:
    """Kernels on a GPU, plain torch elsewhere."""
    if device.where.type != "cuda":
        return reference
    from dgemma.engine.kernels.operations import KernelOperations  # needs triton
    from dgemma.engine.kernels.tiles import chip_at

    return KernelOperations(chip_at(device.where))
