"""The engine of GPUs: a pass through TensorRT plans, of either flavour.

Knows the order of a load and of a pass; buckets, places in memory, checks and whatever else can be
known without a GPU live beside it. Weights, pools, inputs and outputs are on the device once, at
addresses that never change.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dgemma.compatibility import check_engine
from dgemma.engine.base import Capacity, Row, Snapshot
from dgemma.engine.batch import check
from dgemma.engine.binding_plan import DESCRIPTION, EMBEDDING, LOAD, BindingPlan
from dgemma.engine.buckets import Bucket, Buckets, padded, pairs_of
from dgemma.engine.device import CudaDevice, Device
from dgemma.engine.device_memory import check_memory, view
from dgemma.engine.device_pass import DevicePass, Execution
from dgemma.engine.device_pools import put_positions, read_positions, write_rows
from dgemma.engine.device_weights import Progress, load_weights
from dgemma.engine.graph import fresh_names, pool_names
from dgemma.engine.runtime_cache import RuntimeCache, default_directory
from dgemma.engine.tensorrt_runtime import Plan
from dgemma.errors import EngineFailure
from dgemma.machine import Machine
from dgemma.store_manifest import StoreManifest


class _Windows(NamedTuple):
    """Inputs and outputs as the passes of one bucket see them; made once, for they are many."""

    shapes: dict[str, tuple[int, ...]]  # pools included
    tensors: dict[str, Tensor]  # on the device
    said: dict[str, Tensor]  # what describes a pass, on the host


class TensorRTEngine:
    """An Engine whose hidden states stay on the device, in the plan's own type."""

    def __init__(
        self,
        directory: Path,
        store: Path,
        capacity: Capacity,
        *,
        machine: Machine | None = None,
        device: Callable[[], Device] = CudaDevice,
        load: Callable[[str], Any] = importlib.import_module,
        cache: Path | None = None,
        snapshot_bytes: int = 0,
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        """Load a plan, stream its weights in, and make every shape of pass ready.

        Snapshots stay on the device too: up to `snapshot_bytes` of them have to find room. Raises
        ConfigurationError naming the file that is missing, corrupt or for another machine, or the
        memory that is lacking.
        """
        here = Machine.here() if machine is None else machine
        # Weights are hashed while they are read, and no request is taken before.
        manifest = check_engine(directory, here, store=store, deep=False)
        manifest.verify(directory)
        assert here.gpu is not None, "check_engine refuses a plan where there is no GPU"
        path = directory / manifest.graph
        self.geometry, self.capacity = manifest.geometry, capacity
        self._buckets = Buckets(self.geometry, capacity, manifest.profiles)
        self._buckets.check(str(path))
        buckets = list(self._buckets.all())
        layout = self._layout = BindingPlan.of(manifest, capacity, self._buckets.largest)
        layout.check(str(path))
        self._executions = list(layout.executions())
        self._path, self._device = path, device()
        needs = {**layout.needs, "prefix cache": snapshot_bytes}
        check_memory(path, needs, self._device.free_bytes())
        kept = cache or default_directory()
        self._plans = {
            link.file: Plan(
                *(directory, manifest, link),
                RuntimeCache.of(kept, manifest, link.file, here.gpu),
                load,
            )
            for link in manifest.links
        }
        self._weights, self._pool, self._pass = (
            self._device.allocate(arena.nbytes)
            for arena in (layout.weights, layout.pools, layout.pass_)
        )
        load_weights(
            store, StoreManifest.read(store), layout.weights, self._weights, self._device, progress
        )
        # K then V of each layer, `[slots, G, W or N, d]`.
        self.pools = [view(layout.pools, self._pool, name) for name in pool_names(self.geometry)]
        self._windows = lru_cache(None)(self._look)
        self._said = self._device.staging(layout.description_bytes)
        loads = layout.pass_.places[LOAD]
        self._heard = self._device.staging(loads.nbytes).view(torch.int64).view(loads.shape)
        self._scratch = self._device.allocate(1)
        self._passes: dict[Bucket, DevicePass] = {}
        self.reruns = 0
        self._later: list[Callable[[], object]] = []
        self._prepare(buckets, progress)

    def meanwhile(self, call: Callable[[], object]) -> None:
        self._later.append(call)

    def embedding(self) -> Tensor:
        return view(self._layout.weights, self._weights, EMBEDDING)

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row]) -> Tensor:
        check(rows, self.geometry, self.capacity)
        bucket = self._buckets.of(rows)
        try:
            with self._device.turn():
                self._describe(rows, bucket)
                self._run(bucket)
                tensors = self._windows(bucket).tensors
                fresh = [tensors[name] for name in fresh_names(self.geometry)]
                write_rows(self.geometry, rows, fresh, self.pools)
                return tensors["hidden"][: len(rows)]
        except EngineFailure:
            raise
        except Exception as error:
            raise EngineFailure(f"the GPU could not run the pass: {error}") from error

    @torch.inference_mode()
    def snapshot(self, slot: int, start: int, stop: int) -> Snapshot:
        with self._device.turn():
            return read_positions(self.geometry, slot, start, stop, self.pools)

    @torch.inference_mode()
    def restore(self, slot: int, snapshot: Snapshot) -> None:
        with self._device.turn():
            put_positions(self.geometry, slot, snapshot, self.pools)

    def _run(self, bucket: Bucket) -> None:
        """Run until no expert overflows; a pass that overflowed is void and leaves no trace."""
        known = self._passes[bucket]
        known.run()
        later, self._later = self._later, []
        for call in later:
            call()
        while (load := self._load()) > bucket.room:
            self.reruns += 1
            bucket = self._buckets.roomier(bucket, load)
            self._bind(bucket).run()

    def _load(self) -> int:
        """The largest expert load: all that the host reads of a pass."""
        self._heard.copy_(view(self._layout.pass_, self._pass, LOAD), non_blocking=True)
        self._device.wait()
        return int(self._heard[:, 0].max())

    def _describe(self, rows: Sequence[Row], bucket: Bucket) -> None:
        """Put a pass into the inputs, padded to its bucket; one copy for all but ids and soft."""
        windows, all_rows = self._windows(bucket), padded(rows, bucket.rows)
        before, behind = pairs_of(all_rows, bucket.pairs)
        values: dict[str, list[int] | list[bool]] = {
            "start": [row.start for row in all_rows],
            "valid": [row.valid for row in all_rows],
            "slot": [row.slot for row in all_rows],
            "denoise": [row.denoise for row in all_rows],
            "pair_from": before,
            "pair_to": behind,
        }
        for name in DESCRIPTION:
            said = windows.said[name]
            said.copy_(torch.tensor(values[name], dtype=said.dtype))
        self._pass[: len(self._said)].copy_(self._said, non_blocking=True)
        ids, soft = windows.tensors["ids"], windows.tensors["soft"]
        for index, row in enumerate(all_rows):
            ids[index].copy_(row.ids, non_blocking=True)
            if row.soft is None:
                soft[index].zero_()
            else:
                soft[index].copy_(row.soft, non_blocking=True)

    def _look(self, bucket: Bucket) -> _Windows:
        arena, shapes = self._layout.pass_, self._layout.shapes(bucket)
        return _Windows(
            shapes,
            {name: view(arena, self._pass, name, shapes[name]) for name in arena.places},
            {name: view(arena, self._said, name, shapes[name]) for name in DESCRIPTION},
        )

    def _bind(self, bucket: Bucket) -> DevicePass:
        layout = self._layout
        shapes = self._windows(bucket).shapes
        arenas = (
            (layout.weights, self._weights),
            (layout.pools, self._pool),
            (layout.pass_, self._pass),
        )
        at = {
            name: memory.data_ptr() + place.offset
            for arena, memory in arenas
            for name, place in arena.places.items()
        }
        executions = [
            Execution(
                self._plans[file].context(),
                {
                    name: shapes[tensor.binding.name]
                    for name, tensor in tensors.items()
                    if tensor.binding.is_input and -1 in tensor.binding.shape
                },
                {name: at[tensor.place] + tensor.offset for name, tensor in tensors.items()},
            )
            for file, tensors in self._executions
        ]
        profile = self._buckets.profile(bucket)
        return DevicePass(executions, profile, self._memory, self._device)

    def _memory(self, nbytes: int) -> Tensor:
        """What passes share, or for one that needs more, memory of its own."""
        if nbytes <= len(self._scratch):
            return self._scratch
        check_memory(self._path, {"activations": nbytes}, self._device.free_bytes())
        return self._device.allocate(nbytes)

    @torch.inference_mode()
    def _prepare(self, buckets: Sequence[Bucket], progress: Progress) -> None:
        """Run and capture every shape, so that no request waits for kernels to be compiled."""
        for name in ("context_index", "ring_index", "room"):
            if name in self._layout.pass_.places:
                index = view(self._layout.pass_, self._pass, name)
                index.copy_(torch.arange(len(index)))
        ids = torch.zeros(self.geometry.canvas_length, dtype=torch.int64)
        encode = Row(ids, 0, 0, len(ids), denoise=False)
        behind = Row(ids, 0, len(ids), len(ids), denoise=True, partner=0)
        for done, bucket in enumerate(buckets):
            with self._device.turn():
                rows = [encode, behind] if bucket.pairs else [encode]
                self._describe(rows, bucket)
                ready = self._passes[bucket] = self._bind(bucket)
                if len(ready.scratch) > len(self._scratch):
                    self._scratch = ready.scratch
                ready.run()
                ready.capture()
            progress("shapes", done + 1, len(buckets))
        for plan in self._plans.values():
            plan.keep_kernels()
