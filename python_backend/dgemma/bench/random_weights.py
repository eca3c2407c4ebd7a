"""Weights of any geometry and precision, drawn on the device: what needs no checkpoint.

Knows how large a weight has to be for activations to stay of size one and for experts to be chosen
evenly; the numbers mean nothing. Seeded, so that every run measures the same.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from dgemma.engine.binding_plan import Arena
from dgemma.engine.device import Device
from dgemma.engine.device_memory import check_memory, view
from dgemma.engine.torch_weights import WeightReader, arena_of
from dgemma.geometry import Geometry
from dgemma.precision import BLOCK_SCALE, ROW_SCALE, Policy

PIECE = 2**26  # elements drawn at a time
LOGITS = 3.0  # standard deviation of logits: neither flat nor decided
# Of random codes, to make their standard deviation one: int4 of -8..7, e2m1 of all sixteen.
_CODES = {"int4": 4.6, "nvfp4": 2.96, "fp8": 1.0}


def random_weights(
    geometry: Geometry, policy: Policy, device: Device, seed: int = 0
) -> WeightReader:
    """Every weight of a network, in device memory."""
    arena = arena_of(geometry, policy)
    check_memory(Path("random weights"), {"weights": arena.nbytes}, device.free_bytes())
    memory = device.allocate(arena.nbytes)
    _Drawn(policy, torch.Generator(device.where).manual_seed(seed)).fill(arena, memory)
    return WeightReader(geometry, policy, arena, memory)


class _Drawn:
    def __init__(self, policy: Policy, generator: torch.Generator) -> None:
        self._policy, self._generator = policy, generator

    def fill(self, arena: Arena, memory: Tensor) -> None:
        for name in arena.places:
            tensor = view(arena, memory, name)
            if name.endswith((BLOCK_SCALE, ROW_SCALE)):
                tensor.fill_(self._scale(arena, name))
            else:
                self._draw(tensor, name)

    def _draw(self, tensor: Tensor, name: str) -> None:
        mean, deviation = self._moments(name, tensor.shape)
        for piece in tensor.flatten().split(PIECE):
            if piece.dtype == torch.uint8:
                piece.random_(0, 256, generator=self._generator)
            else:
                drawn = torch.empty(piece.shape, device=piece.device)
                drawn.normal_(mean, deviation, generator=self._generator)
                piece.copy_(drawn)

    def _moments(self, name: str, shape: tuple[int, ...]) -> tuple[float, float]:
        """Mean and standard deviation of the elements of a payload."""
        if self._policy.format_of(name).is_quantized:
            return 0.0, 1.0
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            return float(shape[-1]) ** -0.25, 0.0  # scores of a query and a key: about one
        if name.endswith(("scalar", "norm.weight", "router.scale", "per_expert_scale")) or (
            "layernorm" in name
        ):
            return 1.0, 0.05
        return 0.0, (LOGITS if name.startswith("embed_tokens") else 1.0) / math.sqrt(shape[-1])

    def _scale(self, arena: Arena, name: str) -> float:
        """Such that weights have a deviation of one over the root of what a product sums up."""
        of_block = name.endswith(BLOCK_SCALE)
        parameter = name.removesuffix(BLOCK_SCALE if of_block else ROW_SCALE)
        format = self._policy.format_of(parameter)
        if of_block and format.row_scale is not None:
            return 1.0  # the row scale says all
        columns = arena.places[parameter].shape[-1] * format.columns_per_byte
        return 1 / (_CODES[format.name] * math.sqrt(columns))
