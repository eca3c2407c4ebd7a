"""The graph with what a layer reads made to wait until the layer's turn has come.

Knows which large values of a graph wait for nothing but its inputs; knows nothing of what they are
for. A compiler that is free to make them early does so and plans memory for them beside everything
else: the contexts of all layers at once, or banks of dequantised weights during attention.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from dgemma.engine.graph import pool_names
from dgemma.geometry import Geometry
from dgemma_build.cut import cut

LARGEST = 3e38  # below the largest of fp32 and of BF16
_AXES = 3  # of what enters a layer [R, L, D] and of what enters experts [E, C, D]
_SWAPPED = [0, 2, 1]


class _Bank(NamedTuple):
    """Banks of matrices that are dequantised, transposed and multiplied by."""

    dequantize: NodeProto
    transpose: NodeProto
    product: NodeProto


def in_turn(model: ModelProto, geometry: Geometry) -> None:
    """Change, in place, when contexts are read and banks dequantised; no result changes.

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
        banks = {bank.product.output[0]: bank for bank in self._banks()}
        moved = {n.output[0] for bank in banks.values() for n in (bank.dequantize, bank.transpose)}
        for node in self.graph.node:
            output = node.output[0]
            if (bank := banks.get(output)) is not None:
                self._multiply(bank)
                continue
            if node.op_type == "Reshape" and node.input[0] in self.pools:
                self.pools.add(output)
            elif node.op_type == "Gather" and node.input[0] in self.pools:
                entrance = self.parts.residual[self.parts.owner[output]]
                node.input[1] = self._after(entrance, node.input[1], "in_turn/zero")
            if output not in moved:
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

    def _banks(self) -> Iterator[_Bank]:
        """Those that are dequantised in blocks: what has a scale a row is multiplied as it is."""
        consumers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.graph.node:
            for value in node.input:
                consumers[value].append(node)
        for node in self.graph.node:
            blocks = {attribute.name: attribute.i for attribute in node.attribute}
            if node.op_type == "DequantizeLinear" and blocks.get("axis") == _AXES - 1:
                (transpose,) = consumers[node.output[0]]
                (product,) = consumers[transpose.output[0]]
                yield _Bank(node, transpose, product)

    def _multiply(self, bank: _Bank) -> None:
        """`(W @ x.T).T` in place of `x @ W.T`, for which the bank would be copied once more."""
        x, result = bank.product.input[0], bank.product.output[0]
        weight, scale = bank.dequantize.input
        bank.dequantize.input[1] = self._after(x, scale, "in_turn/one")
        self.nodes.append(bank.dequantize)
        columns, swapped = f"{weight}/columns", f"{weight}/swapped"
        self._node("Transpose", [x], columns, perm=_SWAPPED)
        self._node("MatMul", [bank.dequantize.output[0], columns], swapped)
        self._node("Transpose", [swapped], result, perm=_SWAPPED)

    def _after(self, awaited: str, value: str, otherwise: str) -> str:
        """`value`, once `awaited` is there."""
        if (awaited, value) not in self.gates:
            name, first = f"{value}/after/{awaited}", awaited
            for axis in range(_AXES):
                first = self._node("Gather", [first, "in_turn/zero"], f"{name}/{axis}", axis=0)
            size = self._node("Abs", [first], f"{name}/size")
            finite = self._node("Less", [size, "in_turn/largest"], f"{name}/finite")
            self.gates[awaited, value] = self._node("Where", [finite, value, otherwise], name)
        return self.gates[awaited, value]

    def _node(self, operation: str, inputs: list[str], output: str, **attributes: Any) -> str:
        new = helper.make_node(operation, inputs, [output], name=output, **attributes)
        self.nodes.append(new)
        return output
