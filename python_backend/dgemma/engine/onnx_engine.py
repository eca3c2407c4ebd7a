"""The `cpu` engine: a pass through onnxruntime.

Knows how to load an engine directory, how to spread rows over cores and how to run again with more
expert capacity; knows nothing of sampling.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dgemma.engine.base import Capacity, Row, Snapshot
from dgemma.engine.batch import PassShape, check
from dgemma.engine.bound_pass import BoundPass
from dgemma.engine.graph import ROW_INPUTS, pool_names
from dgemma.engine.kv_pool import KVPool
from dgemma.engine.lanes import Pace, lane_rows, lanes_of
from dgemma.errors import ConfigurationError, EngineFailure
from dgemma.geometry import Geometry
from dgemma.manifest import REBUILD, Manifest
from dgemma.ort import ort

SHAPES = 64  # kept with their arrays
# Of weights, up to which lanes may pay: each of the two sessions packs its own copy of them.
SMALL = 2**26
_EMBEDDING = "embed_tokens.weight"

Part = tuple[BoundPass, Sequence[int]]  # rows that have been run, and where they stand in the pass


class OnnxEngine:
    """An Engine that computes in fp32 on the host's cores."""

    def __init__(self, directory: Path, capacity: Capacity, threads: int = 0) -> None:
        """Load and verify an engine built for target `cpu`; `threads` 0 takes every core.

        Raises ConfigurationError naming the file that is missing, corrupt or for another target.
        """
        manifest = Manifest.read(directory)
        if manifest.runtime.flavour != "onnxruntime":
            raise ConfigurationError(
                f"{directory}: built for target {manifest.target} and {manifest.runtime.flavour}, "
                f"not for onnxruntime; {REBUILD}"
            )
        manifest.verify(directory)
        self.geometry: Geometry = manifest.geometry
        self.capacity = capacity
        self.pool = KVPool(self.geometry, capacity.slots, capacity.context)
        self.reruns = 0
        self._later: list[Callable[[], object]] = []
        self._embedding = _read_embedding([directory / name for name in manifest.weights])
        graph = directory / manifest.graph
        self._threads = threads or len(os.sched_getaffinity(0))
        self._session = self._lane = _open_session(graph, self._threads)
        self._check_inputs(graph)
        weight_bytes = sum((directory / name).stat().st_size for name in manifest.weights)
        self._has_lanes = self._threads > 1 and weight_bytes <= SMALL
        if self._has_lanes:
            self._lane = _open_session(graph, 1)
            self._others = ThreadPoolExecutor(self._threads - 1, "lane")
        # Pools never move, so the session reads them where they are.
        self._pools = {
            name: ort.OrtValue.ortvalue_from_numpy(array)
            for name, array in zip(pool_names(self.geometry), self.pool.arrays, strict=True)
        }
        self._bound = lru_cache(SHAPES * self._threads)(self._bind)
        self._pace = lru_cache(SHAPES)(lambda shape: Pace())
        self._whole: dict[int, Tensor] = {}

    def snapshot(self, slot: int, start: int, stop: int) -> Snapshot:
        return self.pool.read(slot, start, stop)

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        self.pool.put(slot, snapshot)

    def meanwhile(self, call: Callable[[], object]) -> None:
        self._later.append(call)

    def embedding(self) -> Tensor:
        return self._embedding

    def forward(self, rows: Sequence[Row]) -> Tensor:
        check(rows, self.geometry, self.capacity)
        shape = PassShape.of(rows, self.geometry, self.capacity)
        pace = self._pace(shape)
        in_lanes = self._has_lanes and pace.choose()
        began = time.perf_counter()
        parts = self._in_lanes(rows) if in_lanes else [self._together(shape, rows)]
        pace.took(in_lanes, time.perf_counter() - began)
        # A pass takes all cores, and the tail behind it one.
        calls, self._later = self._later, []
        for call in calls:
            call()
        for bound, taken in parts:
            if bound.fresh:
                self.pool.write([rows[index] for index in taken], bound.fresh)
        return self._joined(parts, len(rows))

    def _together(self, shape: PassShape, rows: Sequence[Row]) -> Part:
        return self._run(self._bound(shape, self._session, 0), rows), range(len(rows))

    def _in_lanes(self, rows: Sequence[Row]) -> list[Part]:
        """Each lane on a core; the last one on that of whoever asks."""

        def run(at: int) -> Part:
            lane = lane_rows(rows, lanes[at])
            shape = PassShape.of(lane, self.geometry, self.capacity)
            return self._run(self._bound(shape, self._lane, at), lane), lanes[at]

        lanes = lanes_of(rows, self._threads)
        *others, last = range(len(lanes))
        running = [self._others.submit(run, at) for at in others]
        try:
            own = run(last)
        finally:  # nobody may write to the pools meanwhile
            wait(running)
        return [own, *(part.result() for part in running)]

    def _joined(self, parts: Sequence[Part], rows: int) -> Tensor:
        """Hidden states of all rows, `[R, L, D]`."""
        if len(parts) == 1:
            return torch.from_numpy(parts[0][0].hidden)
        if (whole := self._whole.get(rows)) is None:
            size = (rows, self.geometry.canvas_length, self.geometry.hidden_size)
            whole = self._whole[rows] = torch.zeros(size)
        for bound, taken in parts:
            whole.numpy()[taken] = bound.hidden
        return whole

    def _check_inputs(self, graph: Path) -> None:
        """Refuse a graph that takes another kind of pass: one of an older or newer version."""
        found = {value.name for value in self._session.get_inputs()}
        known = {*ROW_INPUTS, "room", *pool_names(self.geometry)}
        # A network without a kind of layer has no use for what that kind needs.
        if odd := sorted(found - known):
            raise ConfigurationError(f"{graph}: unknown inputs: {', '.join(odd)}; {REBUILD}")

    def _bind(self, shape: PassShape, session: ort.InferenceSession, lane: int) -> BoundPass:
        """What lanes hold apart, since they run at once."""
        return BoundPass(session, self._pools, shape, self.geometry)

    def _guess(self, tokens: int) -> int:
        """Expert capacity to try: half as much again as an even spread needs."""
        even = -(-tokens * self.geometry.top_k_experts // self.geometry.num_experts)
        return min(tokens, max(8, int(even * 1.5)))

    def _run(self, bound: BoundPass, rows: Sequence[Row]) -> BoundPass:
        """Run until no expert overflows; a pass that overflowed is void and leaves no trace."""
        room = self._guess(len(rows) * self.geometry.canvas_length)
        while True:
            try:
                load = bound.run(rows, room)
            except Exception as error:
                raise EngineFailure(f"onnxruntime could not run the pass: {error}") from error
            if load <= room:
                return bound
            self.reruns += 1
            room = load


def _open_session(graph: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Between passes the cores belong to the tail and to those who carry answers away.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ConfigurationError(
            f"{graph}: onnxruntime cannot load it: {error}; {REBUILD}"
        ) from None


def _read_embedding(files: Sequence[Path]) -> Tensor:
    """In fp32, whatever it is stored in."""
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                if _EMBEDDING in file.keys():  # noqa: SIM118, a file is no mapping
                    tensor: Tensor = file.get_tensor(_EMBEDDING)
                    return tensor.float()
        except (SafetensorError, OSError) as error:
            raise ConfigurationError(f"{path}: no {_EMBEDDING}: {error}; {REBUILD}") from None
    names = ", ".join(map(str, files))
    raise ConfigurationError(f"{names}: no {_EMBEDDING}; {REBUILD}")
