"""The graph of many layers from the graph of few: a layer's nodes repeated under new names.

Knows which layers of a network repeat and how their values, axes and weights are named; knows
nothing of what a layer computes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby

from onnx import ModelProto, NodeProto, ValueInfoProto

from dgemma.geometry import Geometry
from dgemma_build.cut import BEFORE, cut, layer_of, renamed

_SYMBOL = re.compile(r"\bs\d+\b")  # an axis of unknown size, as torch.export names it


def pattern(geometry: Geometry) -> Geometry:
    """The same network with the fewest layers from which all of `geometry` can be stitched.

    Two of each kind, or one where there is one: what all layers of a kind share is computed in the
    first, so only the second is as all others are. Kinds stand in the order of their appearance.
    """
    kinds = Counter(geometry.layers)
    layers = tuple(kind for kind, count in kinds.items() for _ in range(min(count, 2)))
    return replace(geometry, layers=layers)


def stitch(model: ModelProto, geometry: Geometry) -> ModelProto:
    """The graph of `geometry` from that of its `pattern`; the inputs and outputs keep their order.

    Raises ValueError where the graph's layers share more than can be repeated.
    """
    return _Stitcher(model, geometry).model()


class _Stitcher:
    def __init__(self, model: ModelProto, geometry: Geometry) -> None:
        few = pattern(geometry).layers
        self.source = model
        self.parts = cut(model.graph, len(few))
        # Of each layer, the one of the pattern that it repeats; and where that one itself stands.
        firsts = {kind: few.index(kind) for kind in few}
        seconds = {kind: index for index, kind in enumerate(few)}
        seen = Counter[object]()
        self.origins: list[int] = []
        for kind in geometry.layers:
            self.origins.append(seconds[kind] if seen[kind] else firsts[kind])
            seen[kind] += 1
        self.shared = {firsts[kind]: geometry.layers.index(kind) for kind in few}
        self.own_axes = self._own_axes(len(few))

    def _own_axes(self, depth: int) -> list[set[str]]:
        """The axes that only this layer's inputs have."""
        symbols: list[set[str]] = [set() for _ in range(depth + 1)]
        for value in self.source.graph.input:
            symbols[layer_of(value.name)].update(_SYMBOL.findall(" ".join(_axes(value))))
        counts = Counter(symbol for layer in symbols for symbol in layer)
        return [{s for s in layer if counts[s] == 1} for layer in symbols[:depth]]

    def model(self) -> ModelProto:
        graph, layers = self.source.graph, range(len(self.origins))
        model = ModelProto()
        model.CopyFrom(self.source)
        new = model.graph
        for field in ("node", "input", "output", "value_info"):
            new.ClearField(field)
        new.input.extend(self._repeat(graph.input))
        new.output.extend(self._repeat(graph.output))
        for value in graph.value_info:
            owner = self.parts.owner.get(value.name, BEFORE)
            if owner in (BEFORE, len(self.parts.layers)) and value.name != self.parts.stack:
                new.value_info.append(value)
        for node in self.parts.before:
            new.node.append(_copy(node, node.name, node.input, node.output))
        known = {value.name: value for value in graph.value_info}
        for layer in layers:
            for node in self.parts.layers[self.origins[layer]]:
                new.node.append(
                    _copy(
                        node,
                        renamed(node.name, layer),
                        (self._read(value, layer) for value in node.input),
                        (renamed(value, layer) for value in node.output),
                    )
                )
                new.value_info.extend(
                    self._value(known[v], layer) for v in node.output if v in known
                )
        for node in self.parts.after:
            stacked = node.output[0] == self.parts.stack
            inputs = (
                [renamed(node.input[self.origins[layer]], layer) for layer in layers]
                if stacked
                else [self._read(value, len(layers)) for value in node.input]
            )
            new.node.append(_copy(node, node.name, inputs, node.output))
        return model

    def _read(self, value: str, layer: int) -> str:
        """What a node of `layer` reads where the node that it repeats reads `value`."""
        parts, depth = self.parts, len(self.parts.layers)
        origin = self.origins[layer] if layer < len(self.origins) else depth
        if value == parts.residual[origin]:
            before = layer - 1
            return renamed(parts.residual[self.origins[before] + 1], before) if layer else value
        owner = parts.owner.get(value, BEFORE)
        if owner == origin:
            return renamed(value, layer) if origin < depth else value
        if owner == BEFORE:
            return value
        if owner not in self.shared:
            raise ValueError(f"{value!r} of layer {owner} is read by layer {origin}")
        return renamed(value, self.shared[owner])

    def _repeat(self, values: Iterable[ValueInfoProto]) -> Iterator[ValueInfoProto]:
        """Each run of inputs or outputs of layers, for all layers."""
        for of_layers, run in groupby(values, lambda value: layer_of(value.name) != BEFORE):
            if not of_layers:
                yield from run
                continue
            group = list(run)
            for layer, origin in enumerate(self.origins):
                mine = (value for value in group if layer_of(value.name) == origin)
                yield from (self._value(value, layer) for value in mine)

    def _value(self, value: ValueInfoProto, layer: int) -> ValueInfoProto:
        own = self.own_axes[self.origins[layer]]
        new = ValueInfoProto()
        new.CopyFrom(value)
        new.name = renamed(value.name, layer)
        for axis in new.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = _SYMBOL.sub(
                    lambda match: f"{match[0]}_{layer}" if match[0] in own else match[0],
                    axis.dim_param,
                )
        return new


def _axes(value: ValueInfoProto) -> list[str]:
    return [axis.dim_param for axis in value.type.tensor_type.shape.dim]


def _copy(node: NodeProto, name: str, inputs: Iterable[str], outputs: Iterable[str]) -> NodeProto:
    """`node` under new names."""
    new = NodeProto()
    new.CopyFrom(node)
    new.name = name
    new.input[:] = list(inputs)
    new.output[:] = list(outputs)
    return new
