"""Where shares of a pass meet: a layer's attention waits for K/V that other shares compute.

Knows what shares exchange and how a graph waits; knows nothing of what runs it. Every share runs
this graph at the same time as the others, on a core of its own. What it computes for others lies in
memory that all of them read; in each layer it says so by writing the pass's number beside those of
the others, and reads these until none is behind. Waiting so takes a microsecond or two, where a
thread that sleeps takes dozens to wake.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from dgemma.engine.graph import NUMBER, arrival_name, arrived_name, fresh_names, lines_names
from dgemma.geometry import Geometry

_TRUE = "meetings/true"

Readers = Mapping[str, list[NodeProto]]


def add_meetings(model: ModelProto, geometry: Geometry) -> None:
    """Have each layer read, in place of its own K/V, those of all shares as soon as they are there.

    Changes `model` in place. Raises ValueError where a layer's K/V are read by anything else than
    one gather of their lines.
    """
    graph = model.graph
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    inputs, outputs = [_scalar(NUMBER)], list[ValueInfoProto]()
    nodes = {node.output[0]: [node] for node in graph.node}
    fresh, lines = fresh_names(geometry), lines_names(geometry)
    for layer, kind in enumerate(geometry.layers):
        own = slice(2 * layer, 2 * layer + 2)
        gathers = []
        for made, shared in zip(fresh[own], lines[own], strict=True):
            flat, gather = _gathered(made, readers)
            nodes[flat.output[0]] = []
            inputs.append(_declare(shared, TensorProto.FLOAT, ["lines", kind.head_dim]))
            gather.input[0] = shared
            gathers.append(gather)
        index, met = gathers[0].input[1], f"meetings/{layer}/index"
        for gather in gathers:
            gather.input[1] = met
        inputs.append(_declare(arrived_name(layer), TensorProto.INT64, ["shares"]))
        outputs.append(_scalar(arrival_name(layer)))
        first = gathers[0]
        nodes[first.output[0]] = [*_meeting(layer, fresh[own], index, met), first]
    kept = [NodeProto.FromString(n.SerializeToString()) for group in nodes.values() for n in group]
    graph.ClearField("node")
    graph.node.extend(kept)
    graph.input.extend(inputs)
    graph.output.extend(outputs)
    graph.initializer.append(helper.make_tensor(_TRUE, TensorProto.BOOL, [], [True]))


def _gathered(value: str, readers: Readers) -> tuple[NodeProto, NodeProto]:
    """What makes lines of a layer's K or V, and what gathers them."""
    path: list[NodeProto] = []
    for wanted in ("Reshape", "Gather"):
        found = readers.get(path[-1].output[0] if path else value, [])
        if [node.op_type for node in found] != [wanted]:
            used = ", ".join(node.op_type for node in found) or "nothing"
            raise ValueError(f"{value} goes to {used}, not to one {wanted}")
        path += found
    flat, gather = path
    return flat, gather


def _meeting(layer: int, made: list[str], index: str, met: str) -> Iterator[NodeProto]:
    """`met` is `index`, as soon as all shares have made their K/V."""

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
        return helper.make_node(op, inputs, [output], name=output, **attributes)

    prefix, arrival = f"meetings/{layer}", arrival_name(layer)
    sizes = [f"{prefix}/size_{kind}" for kind in "kv"]
    for value, size in zip(made, sizes, strict=True):
        yield node("Size", [value], size)
    # The number itself, but not before K and V are there.
    yield node("Max", [NUMBER, *sizes], arrival)
    least, behind, kept, passed = (f"{prefix}/{n}" for n in ("least", "behind", "kept", "passed"))
    body = helper.make_graph(
        [
            node("ReduceMin", [arrived_name(layer)], least, keepdims=0),
            node("Less", [least, arrival], behind),
            node("Identity", [kept], passed),
        ],
        f"{prefix}/wait",
        [
            _declare(f"{prefix}/round", TensorProto.INT64, []),
            _declare(f"{prefix}/waiting", TensorProto.BOOL, []),
            _declare(kept, TensorProto.INT64, ["n"]),
        ],
        [_declare(behind, TensorProto.BOOL, []), _declare(passed, TensorProto.INT64, ["n"])],
    )
    yield node("Loop", ["", _TRUE, index], met, body=body)


def _scalar(name: str) -> ValueInfoProto:
    return _declare(name, TensorProto.INT64, [])


def _declare(name: str, dtype: int, shape: list[str | int]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)
