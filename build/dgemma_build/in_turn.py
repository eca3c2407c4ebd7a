"""The graph with what a layer reads made to wait until the layer's turn has come.

Knows which large values of a graph wait for nothing but its inputs; knows nothing of what they are
for. A compiler that is free to make them early does so and plans memory for them beside everything
else: the contexts of all layers at once, or a bank of dequantised weights during attention.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from dgemma.engine.graph import pool_names
from dgemma.geometry import Geometry
from dgemma_build.cut import cut

LARGEST = 3e38  # below the largest of fp32 and of BF16
_AXES = 3  # of what enters a layer [R, L, D] and of what enters experts [E, C, D]


def in_turn(model: ModelProto, geometry: Geometry) -> None:
    """Change, in place, when contexts are read and banks dequantised; no result changes a bit.

    Indices or scales are taken as they are where the first number of what enters the layer, or the
    product, is finite. It always is, or nothing would come of the pass, but no compiler knows that.
    """
    _Turns(model.graph, geometry).run()


class _Turns:
    def __init__(self, graph: GraphProto, geometry: Geometry) -> None:
        self.graph = graph
        self.parts = cut(graph, len(geometry.layers))
        self.pools = set(pool_names(geometry))
        elements = {value.name: value.type.tensor_type.elem_type for value in graph.input}
        self.dtype = elements[pool_names(geometry)[0]]
        self.gates: dict[tuple[str, str], str] = {}
        self.nodes: list[NodeProto] = []

    def run(self) -> None:
        scales = dict(self._banks())
        for node in self.graph.node:
            layer = self.parts.owner[node.output[0]]
            if node.op_type == "Reshape" and node.input[0] in self.pools:
                self.pools.add(node.output[0])
            elif node.op_type == "Gather" and node.input[0] in self.pools:
                entrance = self.parts.residual[layer]
                node.input[1] = self._after(entrance, node.input[1], "in_turn/zero")
            elif node.output[0] in scales:
                node.input[1] = self._after(scales[node.output[0]], node.input[1], "in_turn/one")
            self.nodes.append(node)
        kept = [NodeProto.FromString(node.SerializeToString()) for node in self.nodes]
        del self.graph.node[:]
        self.graph.node.extend(kept)
        for name, dtype, value in (
            ("in_turn/zero", TensorProto.INT64, 0),
            ("in_turn/one", self.dtype, 1),
            ("in_turn/largest", self.dtype, LARGEST),
        ):
            self.graph.initializer.append(helper.make_tensor(name, dtype, [], [value]))

    def _banks(self) -> Iterable[tuple[str, str]]:
        """What is dequantised in blocks for a product of banks, and what it is multiplied with."""
        consumers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.graph.node:
            for value in node.input:
                consumers[value].append(node)
        for node in self.graph.node:
            blocks = {a.name: a.i for a in node.attribute}
            if node.op_type == "DequantizeLinear" and blocks.get("axis") == _AXES - 1:
                (transpose,) = consumers[node.output[0]]
                (product,) = consumers[transpose.output[0]]
                yield node.output[0], product.input[0]

    def _after(self, awaited: str, value: str, otherwise: str) -> str:
        """`value`, once `awaited` is there."""
        if (awaited, value) not in self.gates:
            name, first = f"{value}/after/{awaited}", awaited
            steps = []
            for axis in range(_AXES):
                steps.append(("Gather", [first, "in_turn/zero"], f"{name}/{axis}"))
                first = f"{name}/{axis}"
            steps += [
                ("Abs", [first], f"{name}/size"),
                ("Less", [f"{name}/size", "in_turn/largest"], f"{name}/finite"),
                ("Where", [f"{name}/finite", value, otherwise], name),
            ]
            for operation, inputs, output in steps:
                self.nodes.append(helper.make_node(operation, inputs, [output], name=output))
            self.gates[awaited, value] = name
        return self.gates[awaited, value]
