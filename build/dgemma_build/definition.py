"""What a graph is made from besides its geometry, and a digest that changes with any of it.

Knows the modules that define the network and its emission; knows nothing of checkpoints or files.
"""

from __future__ import annotations

import hashlib
import inspect

import dgemma.engine.graph
import dgemma.model.attention
import dgemma.model.experts
import dgemma.model.fused
import dgemma.model.layers
import dgemma.model.network
import dgemma_build.cut
import dgemma_build.emit
import dgemma_build.stitch

MODULES = (
    dgemma.engine.graph,
    dgemma.model.attention,
    dgemma.model.experts,
    dgemma.model.fused,
    dgemma.model.layers,
    dgemma.model.network,
    dgemma_build.cut,
    dgemma_build.emit,
    dgemma_build.stitch,
)


def definition_digest() -> str:
    """SHA-256, in hexadecimal, of the source text of all `MODULES`."""
    digest = hashlib.sha256()
    for module in MODULES:
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()
