"""The `cpu` engine: a pass through onnxruntime.

Knows how to load an engine directory, how many cores share a pass and how to run again with more
expert capacity; knows nothing of sampling.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dgemma.crew import Crew
from dgemma.engine.base import Capacity, Row, Snapshot
from dgemma.engine.batch import PassShape, check
from dgemma.engine.bound_pass import BoundPass, Core, Cores, Where
from dgemma.engine.contexts import Contexts
from dgemma.engine.graph import (
    NUMBER,
    ROW_INPUTS,
    TOKENS,
    arrived_name,
    lines_names,
)
from dgemma.engine.kv_pool import KVPool
from dgemma.engine.shares import Meeting, share_out
from dgemma.errors import ConfigurationError, EngineFailure
from dgemma.geometry import Geometry
from dgemma.manifest import REBUILD, Manifest
from dgemma.ort import ort

SHAPES = 64  # kept with their arrays …
PLACED_BYTES = 2**27  # … and with what their rows' places have decided, of those run last
# Of weights, up to which every core reads all of them, from its own copy.
SMALL = 2**26
# Processors on which what one core has written is seen by others in that order, as shares need.
ORDERED = ("x86_64", "AMD64")
_EMBEDDING = "embed_tokens.weight"


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
        self._cores = _open_cores(directory, manifest, threads or len(os.sched_getaffinity(0)))
        self._contexts = Contexts(self.pool, self.geometry, capacity)
        self._bound = lru_cache(SHAPES)(self._bind)
        self._placed: dict[BoundPass, None] = {}  # in the order of their last run
        self._pass: BoundPass  # the last, whose rows stood …
        self._where: Where = []

    @property
    def crew(self) -> Crew:
        """The threads that a pass is shared out over, which are free between passes."""
        return self._cores.crew

    def snapshot(self, slot: int, start: int, stop: int) -> Snapshot:
        return self.pool.read(slot, start, stop)

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        self.pool.put(slot, snapshot)

    def meanwhile(self, call: Callable[[], object]) -> None:
        self._later.append(call)

    def embedding(self) -> Tensor:
        return self._embedding

    def forward(self, rows: Sequence[Row]) -> Tensor:
        # A canvas stands where it stood a step before, among the same others.
        where = [(len(row.ids), *row[1:5], row.partner) for row in rows]
        if where != self._where:
            check(rows, self.geometry, self.capacity)
            self._pass = self._placed_pass(PassShape.of(rows, self.geometry, self.capacity))
            self._where = where
        bound = self._pass
        self._run(bound, rows, where)
        # A pass takes all cores, and the tail of a single row behind it one.
        calls, self._later = self._later, []
        for call in calls:
            call()
        self._contexts.keep(rows)
        return torch.from_numpy(bound.hidden)

    def _placed_pass(self, shape: PassShape) -> BoundPass:
        """A pass of this shape; for what its rows' places will decide, older ones make room."""
        bound = self._bound(shape)
        self._placed.pop(bound, None)
        held = sum(other.placed_bytes for other in self._placed)
        while held > PLACED_BYTES:
            oldest = next(iter(self._placed))
            held -= oldest.placed_bytes
            oldest.forget()
            del self._placed[oldest]
        self._placed[bound] = None
        return bound

    def _bind(self, shape: PassShape) -> BoundPass:
        return BoundPass(self._cores, self._contexts, shape, self.geometry)

    def _guess(self, tokens: int) -> int:
        """Expert capacity to try: half as much again as an even spread needs."""
        even = -(-tokens * self.geometry.top_k_experts // self.geometry.num_experts)
        return min(tokens, max(8, int(even * 1.5)))

    def _run(self, bound: BoundPass, rows: Sequence[Row], where: Where) -> None:
        """Run until no expert overflows; a pass that overflowed is void and leaves no trace."""
        room = self._guess(len(rows) * len(self._cores.each[0].tokens))
        while True:
            try:
                load = bound.run(rows, where, room)
            except Exception as error:
                raise EngineFailure(f"onnxruntime could not run the pass: {error}") from error
            if load <= room:
                return
            self.reruns += 1
            room = load


def _open_cores(directory: Path, manifest: Manifest, threads: int) -> Cores:
    """Shares of a small network on a core each, or one share of a large one on all threads."""
    if manifest.index is None:
        raise ConfigurationError(f"{directory}: of another version, without an index; {REBUILD}")
    index, graph = directory / manifest.index, directory / manifest.graph
    weight_bytes = sum((directory / name).stat().st_size for name in manifest.weights)
    length = manifest.geometry.canvas_length
    is_shared = weight_bytes <= SMALL and platform.machine() in ORDERED
    shares = share_out(length, threads if is_shared else 1)
    each = 1 if len(shares) > 1 else threads
    cores = [
        Core(tokens, _open_session(index, each), _open_session(graph, each)) for tokens in shares
    ]
    _check_inputs(manifest.geometry, {index: cores[0].index, graph: cores[0].network})
    meeting = Meeting(len(manifest.geometry.layers), len(shares))
    return Cores(cores, meeting, Crew(len(shares)))


def _check_inputs(geometry: Geometry, sessions: Mapping[Path, ort.InferenceSession]) -> None:
    """Refuse graphs that take another kind of pass: those of an older or newer version."""
    layers = range(len(geometry.layers))
    known = {*ROW_INPUTS, TOKENS, "room", NUMBER}
    known |= {*lines_names(geometry), *map(arrived_name, layers)}
    for path, session in sessions.items():
        found = {value.name for value in session.get_inputs()}
        # A network without a kind of layer has no use for what that kind needs.
        if odd := sorted(found - known):
            raise ConfigurationError(f"{path}: unknown inputs: {', '.join(odd)}; {REBUILD}")
        known |= {value.name for value in session.get_outputs()}


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
