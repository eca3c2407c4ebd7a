"""How large the tiles of products are, by rule: from the chip and the lines that are expected.

Knows that a step over columns is the same whatever the batch, so that what a line gets is too;
measures nothing and knows no kernel.

At 26B on an H200, one canvas sends 16 lines to an expert: all of its time is reading weights (761
MB a layer in fp8, 0.16 ms), so tiles only have to keep some 40 KiB of them on their way to each
multiprocessor and to read each once. Eight canvases send 128 lines: 195 GFLOP a layer, 0.2 ms in
bf16 and 0.1 ms in fp8, about what reading takes; tiles of 128 x 128 then keep the traffic from L2
(1.3 GB for gate_up in fp8) near that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch

from dgemma.engine.kernels.chip import Chip
from dgemma.geometry import Geometry
from dgemma.precision import Format

OUTPUTS = 128  # of a weight that one program has: two halves of 64 where a product is gated
MOST_ROWS = 32  # of a pass, which no engine exceeds
_LINES = (16, 32, 64, 128)
_DENSE_LINES = (64, 128)


@dataclass(frozen=True)
class Tiles:
    """One program's share of a product, and how it is launched."""

    lines: int
    num_warps: int
    num_stages: int

    @classmethod
    def of(cls, lines: int, chip: Chip) -> Tiles:
        # Hopper's wgmma is at its best with all 128 lines, and takes them from four warps;
        # elsewhere their accumulators need the registers of eight.
        num_warps = 8 if lines == 128 and chip.capability != 90 else 4
        # Up to 32 lines it is bytes on their way that count.
        num_stages = 4 if chip.has_wide_mma and lines <= 32 else 3
        return cls(lines, num_warps, num_stages)

    @classmethod
    def dense(cls, chip: Chip) -> Iterator[Tiles]:
        return (cls.of(lines, chip) for lines in _DENSE_LINES)


def expert_tiles(assignments: int, num_experts: int, chip: Chip) -> Tiles:
    """Twice an expert's average, so that most need one tile and their weights are read once."""
    wanted = 2 * assignments / num_experts
    return Tiles.of(next((lines for lines in _LINES if lines >= wanted), _LINES[-1]), chip)


def served_expert_tiles(geometry: Geometry, chip: Chip) -> list[Tiles]:
    """Those of passes of 1 to `MOST_ROWS` rows."""
    picked = geometry.canvas_length * geometry.top_k_experts
    rows = range(1, MOST_ROWS + 1)
    return list(dict.fromkeys(expert_tiles(picked * n, geometry.num_experts, chip) for n in rows))


def dense_tiles(lines: int, chip: Chip) -> Tiles:
    """Smaller ones for two canvases at most: 2816 outputs then make a program for most of a GPU."""
    return Tiles.of(_DENSE_LINES[lines > 512], chip)


def columns(format: Format, inputs: int) -> int:
    """Of a product's inputs, those that one step takes: 128 bytes of a line, where they fit.

    More of them in four bits would be unpacked into more registers than there are.
    """
    return 128 if format.name == "fp8" and inputs % 128 == 0 else 64


@cache
def chip_at(device: torch.device) -> Chip:
    """ConfigurationError where the device's compute capability has no kernels."""
    if device.type != "cuda":
        return Chip.of(90)  # interpreted: laid out as for this one
    major, minor = torch.cuda.get_device_capability(device)
    return Chip.of(10 * major + minor)
