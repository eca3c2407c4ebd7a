"""Where every input and output of a plan stands in device memory.

Knows sizes, alignment and the meaning of each dynamic axis; allocates nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from dgemma.engine.base import Capacity
from dgemma.engine.buckets import Bucket
from dgemma.engine.graph import ENTERING, LEAVING, moved
from dgemma.engine.weight_bindings import pass_inputs, stored_as, weight_inputs
from dgemma.errors import ConfigurationError
from dgemma.manifest import REBUILD, Binding, Manifest

EMBEDDING = "embed_tokens.weight"
ALIGNMENT = 256  # of every address that TensorRT is given

# As safetensors spells them; what is packed is laid out as a store's bytes.
WIDTHS = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "U8": 1, "I64": 8, "I32": 4, "BOOL": 1}
# What the host says about a pass stands together, so that one copy carries it over.
DESCRIPTION = ("start", "valid", "slot", "pair_from", "pair_to", "denoise")
# What it hears stands together too: the load of each execution, at an address of its own.
LOAD = "load"
_LOAD_STRIDE = ALIGNMENT // 8  # in int64

# (pattern of names, axis, size) of every dynamic axis.
_AXES = (
    *((name, 0, "rows") for name in ("ids", "soft", "denoise", "start", "valid", "slot")),
    *((name, 0, "rows") for name in ("hidden", "fresh_[kv].*", ENTERING, LEAVING)),
    ("pair_from", 0, "pairs"),
    ("pair_to", 0, "pairs"),
    ("context_index", 0, "context"),
    ("ring_index", 0, "ring"),
    ("room", 0, "room"),
    ("pool_[kv].*", 0, "slots"),
    ("pool_[kv].*", 2, "pool"),
)


@dataclass(frozen=True)
class Place:
    """Bytes of an arena that hold one tensor of at most `shape`."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * WIDTHS[self.dtype]


@dataclass(frozen=True)
class Arena:
    """One piece of device memory and what stands where in it."""

    places: Mapping[str, Place]
    nbytes: int

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> Arena:
        """Of (name, dtype, shape), in this order, each aligned."""
        places, offset = {}, 0
        for name, dtype, shape in tensors:
            places[name] = place = Place(dtype, shape, offset)
            # Not even an empty tensor shares its address with another one.
            offset += -(-max(1, place.nbytes) // ALIGNMENT) * ALIGNMENT
        return cls(places, offset)


class Tensor(NamedTuple):
    """An input or output of a plan in one of its executions."""

    binding: Binding  # of the network
    place: str
    offset: int  # in bytes, from that place's


class Execution(NamedTuple):
    """One of a plan in a pass: what the plan calls its inputs and outputs, and what they are."""

    file: str
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class BindingPlan:
    """The three arenas: a pass's inputs and outputs at their largest, K/V pools, weights."""

    manifest: Manifest
    capacity: Capacity
    pass_: Arena
    pools: Arena
    weights: Arena

    @classmethod
    def of(cls, manifest: Manifest, capacity: Capacity, largest: Bucket) -> BindingPlan:
        """`largest` has the most of every size. ConfigurationError names an unknown axis."""
        sizes = _sizes(largest, capacity)
        inputs = {b.name for b in weight_inputs(manifest)}
        plain = [b for b in manifest.bindings if b.name not in inputs]
        plain.sort(key=lambda b: b.name not in DESCRIPTION)
        loads = sum(len(link.first_layers) for link in manifest.links if LOAD in link.names)
        pools = [b for b in plain if b.name.startswith("pool_")]
        rest = [b for b in plain if not b.name.startswith("pool_")]
        specs = {b.name: stored_as(b) for b in weight_inputs(manifest)}
        if EMBEDDING not in specs:  # a plan that holds its weights; the tail needs this one too
            g = manifest.geometry
            specs |= manifest.policy.tensors({EMBEDDING: (g.vocab_size, g.hidden_size)})
        return cls(
            manifest,
            capacity,
            Arena.of(
                (b.name, b.dtype, (loads, _LOAD_STRIDE) if b.name == LOAD else _resolve(b, sizes))
                for b in rest
            ),
            Arena.of((b.name, b.dtype, _resolve(b, sizes)) for b in pools),
            Arena.of((name, spec.dtype, spec.shape) for name, spec in specs.items()),
        )

    @property
    def needs(self) -> dict[str, int]:
        """Bytes by what they are for; a runtime's own for activations come on top."""
        return {
            "weights": self.weights.nbytes,
            "K/V pools": self.pools.nbytes,
            "inputs and outputs": self.pass_.nbytes,
        }

    @property
    def description_bytes(self) -> int:
        """How much of the head of `pass_` describes a pass."""
        ends = [p.offset + p.nbytes for n, p in self.pass_.places.items() if n in DESCRIPTION]
        return max(ends)

    def shapes(self, bucket: Bucket) -> dict[str, tuple[int, ...]]:
        """The shape of everything but weights in passes of `bucket`."""
        sizes = _sizes(bucket, self.capacity)
        known = self.pass_.places.keys() | self.pools.places.keys()
        return {b.name: _resolve(b, sizes) for b in self.manifest.bindings if b.name in known}

    def executions(self) -> Iterator[Execution]:
        """What a pass is, in order. ConfigurationError where the chain is not the network's."""
        every = {b.name: b for b in self.manifest.bindings}
        unused, loads = set(every), 0
        swapped = {ENTERING: LEAVING, LEAVING: ENTERING}
        runs = [(link, first) for link in self.manifest.links for first in link.first_layers]
        for turn, (link, first) in enumerate(runs):
            tensors = {}
            for name in link.names:
                known = moved(name, first)
                if known not in every:
                    raise ConfigurationError(f"{link.file}: {known} is no binding; {REBUILD}")
                # What one execution leaves is what enters the next.
                place = swapped.get(known, known) if turn % 2 else known
                tensors[name] = Tensor(every[known], place, loads if known == LOAD else 0)
                unused.discard(known)
            loads += ALIGNMENT if LOAD in link.names else 0
            yield Execution(link.file, tensors)
        if unused:
            raise ConfigurationError(f"no plan has {', '.join(sorted(unused)[:5])}; {REBUILD}")

    def check(self, path: str) -> None:
        """ConfigurationError where the plan takes another kind of pass than this software runs."""
        here = {b.name for b in self.manifest.bindings if b.is_input}
        # A network without a kind of layer has no use for what that kind needs.
        optional = {"context_index", "ring_index", "room"}
        if missing := sorted(pass_inputs(self.manifest.geometry) - here - optional):
            raise ConfigurationError(f"{path}: lacks the inputs {', '.join(missing)}; {REBUILD}")


def _sizes(bucket: Bucket, capacity: Capacity) -> dict[str, int]:
    return {**vars(bucket), "slots": capacity.slots, "pool": capacity.context}


def _resolve(binding: Binding, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(
        _size(binding, axis, sizes) if size < 0 else size for axis, size in enumerate(binding.shape)
    )


def _size(binding: Binding, axis: int, sizes: Mapping[str, int]) -> int:
    for pattern, known, size in _AXES:
        if axis == known and fnmatchcase(binding.name, pattern):
            return sizes[size]
    raise ConfigurationError(f"{binding.name}: axis {axis} of the plan is not known; {REBUILD}")
