"""The engine of kernels, for any GPU: nothing but a manifest.

Knows what that says. Kernels are part of this software and are compiled where they run, and weights
are a store's, so there is nothing else to write.
"""

from __future__ import annotations

import torch

from dgemma.machine import TORCH
from dgemma.manifest import Runtime
from dgemma_build.parts import Parts


def parts() -> Parts:
    """No graph, no file, no limits of shapes."""
    return Parts(Runtime(TORCH, torch.__version__), tools=(TORCH,))
