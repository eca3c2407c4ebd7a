"""A small engine for `cpu` to verify, built once, copied where it is to be broken."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from dgemma_build.engine import build_engine
from tests.dgemma_build.quantized import whole_groups
from tests.oracle.checkpoints import WHOLE_GROUPS, write_tiny_checkpoint

GEOMETRY = whole_groups()
# A network that does not magnify rounding from layer to layer.
TEXT = WHOLE_GROUPS | {"sliding_window": 12}


@cache
def cpu_engine(precision: str) -> Path:
    """An engine directory that nobody may change."""
    root = Path(mkdtemp(prefix="dgemma-verify-"))
    write_tiny_checkpoint(root / "checkpoint", canvas_length=8, **TEXT)
    build_engine(root / "checkpoint", "cpu", precision, root / "engine")
    return root / "engine"
