"""A network as a chain of plans: what enters its layers, then one period of them, again and again.

Knows which layers of a network repeat and where its graph is cut; knows nothing of what compiles
it. Weights and pools are inputs, so one plan serves every period: it takes a fraction of the time
to compile, of the bytes, and of the kernels that a GPU makes of it at its first start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import filter as filter_names
from typing import NamedTuple

from onnx import ModelProto
from onnx.utils import Extractor

from dgemma.engine.graph import ENTERING, LEAVING, moved
from dgemma.geometry import Geometry
from dgemma.manifest import Binding, Link
from dgemma.model.checkpoint import parameter_shapes
from dgemma.precision import Policy
from dgemma_build.cut import BEFORE, cut, layer_of


class Pieces(NamedTuple):
    """Graphs that are, one after the other, the network."""

    before: ModelProto  # ids and soft embeddings -> LEAVING
    layers: ModelProto  # ENTERING -> LEAVING, hidden states, load and fresh K/V of its layers


def period(geometry: Geometry, policy: Policy) -> tuple[Geometry, Policy]:
    """The network of the fewest layers that give all of `geometry` if they are repeated.

    Layers repeat where they are of one kind and their weights of one format. Its policy is `policy`
    without the rules for layers that it lacks.
    """
    depth = len(geometry.layers)
    for length in range(1, depth + 1):
        few = replace(geometry, layers=geometry.layers[:length])
        if few.layers * (depth // length) != geometry.layers:
            continue
        names = list(parameter_shapes(few))
        later = [moved(name, first) for first in range(length, depth, length) for name in names]
        if all(policy.format_of(n) == policy.format_of(_first(n, length)) for n in later):
            elsewhere = {
                pattern
                for pattern, _ in policy.rules
                if filter_names(later, pattern) and not filter_names(names, pattern)
            }
            rules = tuple(rule for rule in policy.rules if rule[0] not in elsewhere)
            return few, replace(policy, rules=rules)
    raise ValueError("a network without layers")


def _first(name: str, length: int) -> str:
    """What `name` is called in the first `length` layers."""
    layer = layer_of(name)
    return name if layer == BEFORE else moved(name, layer % length - layer)


def take_apart(model: ModelProto, geometry: Geometry) -> Pieces:
    """The graph of `geometry` in two; together they have its nodes and no others.

    Indices, masks and rotary tables are computed from integers in each execution of the layers, so
    that nothing but the residual stream passes between plans. Masks are the largest of them, 7
    bytes for each token and key: of the 26B network, with two rows and 8K of context, making them
    for every period writes 0.12 GB more, where fp8 weights alone are 27 GB.
    """
    first, *_, last = cut(model.graph, len(geometry.layers)).residual
    outputs = [value.name for value in model.graph.output]
    before = _extract(model, {first: LEAVING}, [LEAVING])
    layers = _extract(model, {first: ENTERING, last: LEAVING}, [LEAVING, *outputs])
    return Pieces(before, layers)


def _extract(model: ModelProto, names: Mapping[str, str], outputs: Sequence[str]) -> ModelProto:
    """What `outputs` are computed from; values are renamed, and ENTERING is taken as it is."""
    renamed = ModelProto()
    renamed.CopyFrom(model)
    for node in renamed.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in renamed.graph.value_info:
        value.name = names.get(value.name, value.name)
    extractor = Extractor(renamed)
    inputs = [value.name for value in model.graph.input]
    if ENTERING in names.values():
        inputs.insert(0, ENTERING)
    reached: ModelProto = extractor.extract_model(inputs, list(outputs))
    read = {name for node in reached.graph.node for name in node.input}
    piece: ModelProto = extractor.extract_model([n for n in inputs if n in read], list(outputs))
    return piece


def linked(
    plans: Mapping[str, tuple[Binding, ...]], repeated: str, length: int, depth: int
) -> tuple[tuple[Link, ...], tuple[Binding, ...]]:
    """The chain of `plans`, file -> what it takes and gives, and what the network takes and gives.

    The plan `repeated`, of `length` layers, is executed for all of `depth`; the others once.
    """
    links, bindings = [], dict[str, Binding]()
    for file, own in plans.items():
        starts = tuple(range(0, depth, length)) if file == repeated else (0,)
        links.append(Link(file, tuple(binding.name for binding in own), starts))
        for start in starts:
            for binding in own:
                name = moved(binding.name, start)
                bindings[name] = replace(binding, name=name)
    return tuple(links), tuple(bindings.values())
