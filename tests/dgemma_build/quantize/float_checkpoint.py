"""A small checkpoint in BF16, and what tests of quantising it have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import dgemma_build.quantize.run
import dgemma_build.quantize.shards
from dgemma.errors import ConfigurationError
from dgemma_build.quantize.run import Quantized, quantize_checkpoint
from tests.dgemma.model.tiny_weights import hf_tensors, random_network, write_weights
from tests.quantized_checkpoint import GEOMETRY

SOURCE = {name: t.bfloat16() for name, t in hf_tensors(random_network(GEOMETRY)).items()}
PRECISIONS = ("fp8", "int4", "nvfp4", "bf16")
SHARDS = ["layer-00.safetensors", "layer-01.safetensors", "rest.safetensors"]
BANK = "model.decoder.layers.1.experts.gate_up_proj"


def write(directory: Path, **changed: Tensor | None) -> Path:
    """The checkpoint with tensors replaced, added or (None) left out."""
    tensors = {name: t for name, t in {**SOURCE, **changed}.items() if t is not None}
    return write_weights(directory / "checkpoint", GEOMETRY, tensors)


def run(checkpoint: Path, precision: str = "int4", **more: Any) -> Quantized:
    return quantize_checkpoint(checkpoint, precision, checkpoint.parent / "store", **more)


def refusal(checkpoint: Path, precision: str = "int4", **more: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        run(checkpoint, precision, **more)
    return str(caught.value)


def neighbours(checkpoint: Path) -> set[str]:
    return {path.name for path in checkpoint.parent.iterdir()} - {"checkpoint"}


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def written_by(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that a run writes."""
    names: list[str] = []

    def write_shard(path: Path, *rest: Any) -> Any:
        names.append(path.name)
        return dgemma_build.quantize.shards.write_shard(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(dgemma_build.quantize.run, "write_shard", write_shard)
        run(checkpoint)
    return names
