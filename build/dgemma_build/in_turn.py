"""The graph with each layer's context read only once the layer's turn has come.

Knows which reads of a graph wait for nothing but its inputs; knows nothing of what they are for. A
compiler that is free to read every layer's context first does so, and plans memory for all of them
side by side: 134 MB for each row of 32768 tokens and layer of the published network.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dgemma.engine.graph import pool_names
from dgemma.geometry import Geometry
from dgemma_build.cut import cut

FINITE, FIRST = "in_turn/largest", "in_turn/first"
ROOM = {TensorProto.BFLOAT16: 3e38, TensorProto.FLOAT: 3e38}


def in_turn(model: ModelProto, geometry: Geometry) -> None:
    """Change, in place, where the contexts of layers are read; the results are the same bits.

    The indices of a read become those of the pass where the first number that enters the layer is
    finite, as it always is, which no compiler knows.
    """
    graph = model.graph
    depth = len(geometry.layers)
    parts = cut(graph, depth)
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input)}
    pools = _followed(graph.node, pool_names(geometry))
    nodes: list[NodeProto] = []
    waits: dict[tuple[str, int], str] = {}
    for node in graph.node:
        layer = parts.owner[node.output[0]]
        if node.op_type == "Gather" and node.input[0] in pools and 0 <= layer < depth:
            key = node.input[1], layer
            if key not in waits:
                entrance = parts.residual[layer]
                nodes += _wait(entrance, types.get(entrance, TensorProto.BFLOAT16), *key)
                waits[key] = nodes[-1].output[0]
            node.input[1] = waits[key]
        nodes.append(node)
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    dtype = types[pool_names(geometry)[0]]
    graph.initializer.append(helper.make_tensor(FINITE, dtype, [], [ROOM[dtype]]))
    for name, value in ((FIRST, 0),):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))


def _followed(nodes, names):
    found = set(names)
    for node in nodes:
        if node.op_type == "Reshape" and node.input[0] in found:
            found.add(node.output[0])
    return found


def _wait(entrance: str, dtype: int, index: str, layer: int) -> list[NodeProto]:
    name = f"layers.{layer}/in_turn"
    nodes, value = [], entrance  # [R, L, D]
    for axis in range(3):
        nodes.append(helper.make_node("Gather", [value, FIRST], [f"{name}/first.{axis}"], axis=0))
        value = nodes[-1].output[0]
    steps = (
        ("Abs", [value], f"{name}/size"),
        ("Less", [f"{name}/size", FINITE], f"{name}/finite"),
        ("Where", [f"{name}/finite", index, FIRST], f"{name}/{index}"),
    )
    nodes += [helper.make_node(op, inputs, [output]) for op, inputs, output in steps]
    for node in nodes:
        node.name = node.output[0]
    return nodes
