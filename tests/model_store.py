"""A model store of a tiny checkpoint: int4 weights, their engine, and one in fp32.

The int4 engine is what a first start builds where a store has weights and no engine.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dgemma.geometry import FULL, Geometry
from dgemma.machine import Machine
from dgemma.profiles.builder import Builder
from dgemma.profiles.first_start import build_first
from dgemma.profiles.inventory import Inventory
from dgemma.profiles.selection import Refusal
from dgemma_build.engine import build_engine
from dgemma_build.quantize.run import quantize_checkpoint
from tests.oracle.checkpoints import write_tiny_checkpoint

SMALLEST: dict[str, Any] = {
    "num_hidden_layers": 1,
    "layer_types": [FULL],
    "num_experts": 2,
    **dict.fromkeys(("hidden_size", "intermediate_size", "moe_intermediate_size"), 64),
}


@dataclass(frozen=True)
class ModelStore:
    checkpoint: Path
    root: Path
    fp32: Path  # the engine
    refused: tuple[Refusal, ...]  # by the first start

    def copy(self, to: Path) -> ModelStore:
        """To be damaged."""
        shutil.copytree(self.root, to)
        return replace(self, root=to, fp32=to / self.fp32.relative_to(self.root))

    def environment(self) -> dict[str, str]:
        """Settings that serve it on a machine whose GPUs are hidden."""
        return {
            "NIM_MODEL_PATH": str(self.root),
            "DGEMMA_CHECKPOINT": str(self.checkpoint),
            "DGEMMA_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "-1",
        }


def write_model_store(directory: Path) -> ModelStore:
    checkpoint = write_tiny_checkpoint(directory / "checkpoint", **SMALLEST)
    root = directory / "store"
    quantize_checkpoint(checkpoint, "int4", root / "weights" / "int4")
    here = replace(Machine.here(), gpu=None)
    geometry = Geometry.from_checkpoint(checkpoint)
    refused = build_first(Inventory.of(root), here, geometry, Builder.here())
    fp32 = root / "engines" / "fp32"
    build_engine(checkpoint, "cpu", "fp32", fp32)
    return ModelStore(checkpoint, root, fp32, tuple(refused))
