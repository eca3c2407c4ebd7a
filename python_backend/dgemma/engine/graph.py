"""Names of the graph's inputs and outputs, shared by who emits it and who runs it.

Knows the order and the names; knows nothing of ONNX or of a runtime.
"""

from __future__ import annotations

import re

from dgemma.geometry import Geometry

# What is named after the layer that it belongs to.
OF_LAYER = re.compile(r"(layers|(?:pool|fresh)_[kv])\.(\d+)(?=\.|$)")

# In the order of `Network.forward` and of `RowIndex`'s fields.
ROW_INPUTS = (
    "ids",
    "soft",
    "denoise",
    "start",
    "valid",
    "slot",
    "pair_from",
    "pair_to",
    "context_index",
    "ring_index",
)

# Which of each row's tokens a graph computes, where it is that of a share of a pass.
TOKENS = "tokens"
# What says where rows stand and nothing of what is in them.
INDEX_INPUTS = (*ROW_INPUTS[2:], TOKENS)

# The number of a pass, a scalar larger than the size of any tensor: by it shares know whether the
# others have come as far as they have.
NUMBER = "number"

# The residual stream, `[R, L, D]`, where a network is cut in plans.
ENTERING, LEAVING = "entering", "leaving"


def moved(name: str, layers: int) -> str:
    """What `name` is called so many layers further on."""
    return OF_LAYER.sub(lambda found: f"{found[1]}.{int(found[2]) + layers}", name, count=1)


def pool_names(geometry: Geometry) -> list[str]:
    """K then V of each layer's pool."""
    return [f"pool_{kind}.{i}" for i in range(len(geometry.layers)) for kind in "kv"]


def fresh_names(geometry: Geometry) -> list[str]:
    """K then V that each layer computed in this pass."""
    return [f"fresh_{kind}.{i}" for i in range(len(geometry.layers)) for kind in "kv"]


def lines_names(geometry: Geometry) -> list[str]:
    """What each layer of a share writes to: K, V that rows attend to, lines `[R * G * S, d]`."""
    return [f"lines_{kind}.{i}" for i in range(len(geometry.layers)) for kind in "kv"]


def written_names(geometry: Geometry) -> list[str]:
    """The same lines with what the share has written to them; in the same memory."""
    return [f"written_{kind}.{i}" for i in range(len(geometry.layers)) for kind in "kv"]


def arrived_name(layer: int) -> str:
    """The numbers of the last passes in which each share had this layer's K/V, `[shares]`."""
    return f"arrived.{layer}"


def arrival_name(layer: int) -> str:
    """A share's own such number, a scalar."""
    return f"arrival.{layer}"
