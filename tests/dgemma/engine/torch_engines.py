"""Torch engines on the host, of stores and of checkpoints, and services with them."""

from __future__ import annotations

from pathlib import Path

import torch

from dgemma.assemble import Parts, assemble, tail_of
from dgemma.engine.base import Capacity
from dgemma.engine.device import Device, HostDevice
from dgemma.engine.device_memory import view
from dgemma.engine.device_weights import load_weights
from dgemma.engine.torch_engine import TorchEngine
from dgemma.engine.torch_weights import WeightReader, arena_of
from dgemma.geometry import Geometry
from dgemma.model.checkpoint import Checkpoint, load_tensors
from dgemma.precision import policy_of
from dgemma.store_manifest import StoreManifest

SLOTS, CONTEXT = 3, 1024


def of_store(store: Path, capacity: Capacity, device: Device | None = None) -> TorchEngine:
    """Activations in fp32, whatever the weights are in."""
    device = device or HostDevice()
    return TorchEngine(stored_weights(store, device), capacity, device, dtype=torch.float32)


def stored_weights(store: Path, device: Device) -> WeightReader:
    held = StoreManifest.read(store)
    arena = arena_of(held.geometry, held.policy)
    memory = device.allocate(arena.nbytes)
    load_weights(store, held, arena, memory, device)
    return WeightReader(held.geometry, held.policy, arena, memory)


def of_checkpoint(checkpoint: Path, capacity: Capacity) -> TorchEngine:
    """In fp32."""
    geometry, policy, device = Geometry.from_checkpoint(checkpoint), policy_of("fp32"), HostDevice()
    arena = arena_of(geometry, policy)
    memory = device.allocate(arena.nbytes)
    for name, tensor in load_tensors(Checkpoint(checkpoint), geometry):
        view(arena, memory, name).copy_(tensor)
    return TorchEngine(WeightReader(geometry, policy, arena, memory), capacity, device)


def parts_of(engine: Path, checkpoint: Path) -> Parts:
    """A service with the engine in a directory."""
    return assemble(engine, checkpoint, slots=SLOTS, max_model_len=CONTEXT)


def torch_parts(engine: Path, checkpoint: Path) -> Parts:
    """The same service with a torch engine of the checkpoint in its place."""
    parts = parts_of(engine, checkpoint)
    mine = of_checkpoint(checkpoint, Capacity(SLOTS, CONTEXT, 2 * SLOTS))
    parts.scheduler.engine = mine
    parts.scheduler.tail = tail_of(mine.embedding(), mine.geometry)
    return parts
