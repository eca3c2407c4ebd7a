"""Small engines for `cpu` to verify: built once, copied where they are to be broken."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from dgemma_build.engine import build_engine
from tests.dgemma.model.tiny_weights import hf_tensors, random_network, write_weights
from tests.dgemma_build.quantized import whole_groups

GEOMETRY = whole_groups()


@cache
def cpu_engine(precision: str) -> Path:
    """An engine directory that nobody may change."""
    root = Path(mkdtemp(prefix="dgemma-verify-"))
    write_weights(root / "checkpoint", GEOMETRY, hf_tensors(random_network(GEOMETRY)))
    build_engine(root / "checkpoint", "cpu", precision, root / "engine")
    return root / "engine"
