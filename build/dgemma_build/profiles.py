"""The ranges of shapes that a plan is compiled for, one profile per range of rows.

Knows which axis of which input of the graph is what; knows nothing of TensorRT or of GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import NamedTuple

import onnx

from dgemma.engine.graph import ENTERING
from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma_build.envelope import Envelope

# The one place that says what the graph's dynamic axes are: (pattern of names, axis, size).
_AXES = (
    *((name, 0, "rows") for name in ("ids", "soft", "denoise", "start", "valid", "slot")),
    (ENTERING, 0, "rows"),
    ("pair_from", 0, "pairs"),
    ("pair_to", 0, "pairs"),
    ("context_index", 0, "context"),
    ("ring_index", 0, "ring"),
    ("room", 0, "capacity"),
    ("pool_[kv].*", 0, "slots"),
    ("pool_[kv].*", 2, "context"),
)
TYPICAL_CONTEXT = 8192  # where kernels are chosen for one length among many


class Shapes(NamedTuple):
    """The smallest, the typical and the largest shape of one input."""

    least: tuple[int, ...]
    typical: tuple[int, ...]
    most: tuple[int, ...]


Profile = dict[str, Shapes]


def profiles(
    graph: onnx.GraphProto, geometry: Geometry, envelope: Envelope, buckets: Sequence[int] = ()
) -> tuple[Profile, ...]:
    """The shapes of every input with a dynamic axis; passes of 1 to `envelope.rows` rows.

    `buckets`, ascending, end the rows of each profile but the last. Raises ConfigurationError for
    an envelope that is impossible, or naming an input whose axis no range is known for.
    """
    borders = [0, *buckets, envelope.rows]
    capacity = 1 if envelope.capacity is None else envelope.capacity
    if min(envelope.slots, envelope.context, capacity) < 1:
        raise ConfigurationError(f"{envelope}: slots, context and capacity are at least 1")
    if any(low >= high for low, high in pairwise(borders)):
        raise ConfigurationError(
            f"rows 1 to {envelope.rows} cannot be divided at {list(buckets)}; "
            "borders ascend and lie between"
        )
    return tuple(
        _profile(graph, _sizes(geometry, envelope, low + 1, high))
        for low, high in pairwise(borders)
    )


def limits(profile: Profile) -> dict[str, tuple[int, int]]:
    """The least and the most of each size that `profile` covers, of sizes that an input has."""
    found: dict[str, tuple[int, int]] = {}
    for pattern, axis, size in _AXES:
        for name, shapes in profile.items():
            if size not in found and fnmatchcase(name, pattern):
                found[size] = (shapes.least[axis], shapes.most[axis])
    return found


def _sizes(
    g: Geometry, envelope: Envelope, least_rows: int, rows: int
) -> Mapping[str, tuple[int, int, int]]:
    """Smallest, typical and largest of each size, in passes of `least_rows` to `rows` rows."""
    tokens = rows * g.canvas_length
    capacity = tokens if envelope.capacity is None else min(tokens, envelope.capacity)
    even = -(-tokens * g.top_k_experts // g.num_experts)
    return {
        "rows": (least_rows, rows, rows),
        # Of two rows each; passes without any are the rule.
        "pairs": (0, rows // 4, rows // 2),
        "slots": (1, envelope.slots, envelope.slots),
        "context": (1, min(TYPICAL_CONTEXT, envelope.context), envelope.context),
        "ring": (1, g.sliding_window, g.sliding_window),
        # An even spread, and half as much again.
        "capacity": (1, min(capacity, even + -(-even // 2)), capacity),
    }


def _profile(graph: onnx.GraphProto, sizes: Mapping[str, tuple[int, int, int]]) -> Profile:
    profile = {}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            continue
        ranges = [
            (dim.dim_value,) * 3
            if dim.HasField("dim_value")
            else sizes[_meaning(value.name, axis, dim.dim_param)]
            for axis, dim in enumerate(dims)
        ]
        profile[value.name] = Shapes(*zip(*ranges, strict=True))
    return profile


def _meaning(name: str, axis: int, symbol: str) -> str:
    for pattern, known, size in _AXES:
        if axis == known and fnmatchcase(name, pattern):
            return size
    raise ConfigurationError(
        f"input {name!r} of the graph: axis {axis} ({symbol or 'unnamed'}) is dynamic and no range "
        f"is known for it; {__name__} lists those that are"
    )
