"""Where shares of a pass meet: a layer's attention waits for K/V that other shares compute.

Knows what shares have in common and how a graph waits; knows nothing of what runs it. Every share
runs this graph at the same time as the others, on a core of its own. The K/V that rows attend to
lie in memory that all of them write their own tokens' to; in each layer a share says that it has,
by writing the pass's number beside those of the others, and reads these until none is behind.
Waiting so takes a microsecond or two, where a thread that sleeps takes dozens to wake.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from dgemma.engine.graph import (
    NUMBER,
    arrival_name,
    arrived_name,
    fresh_names,
    lines_names,
    pool_names,
    written_names,
)
from dgemma.geometry import Geometry

_TRUE = "meetings/true"

Readers = Mapping[str, list[NodeProto]]


def add_meetings(model: ModelProto, geometry: Geometry) -> None:
    """Have each layer write its own K/V to lines that all shares have in common, and read them as
    soon as all shares have.

    Changes `model` in place: it takes and gives lines in place of pools and fresh K/V. Raises
    ValueError where a layer's pools are used for anything else than to write to their lines.
    """
    graph = model.graph
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes = {node.output[0]: [node] for node in graph.node}
    names = zip(pool_names(geometry), lines_names(geometry), written_names(geometry), strict=True)
    arrived, arrivals = [_scalar(NUMBER)], list[ValueInfoProto]()
    lines, written = list[ValueInfoProto](), list[ValueInfoProto]()
    for layer, kind in enumerate(geometry.layers):
        reads = []
        for pool, taken, given in (next(names) for _ in "kv"):
            flat, write, read = _written(pool, readers)
            write.input[0], write.output[0], read.input[0] = taken, given, given
            nodes[flat.output[0]] = nodes[read.output[0]] = []
            reads.append(read)
            for name, ends in ((taken, lines), (given, written)):
                ends.append(_declare(name, TensorProto.FLOAT, ["lines", kind.head_dim]))
        shape, met = reads[0].input[1], f"meetings/{layer}/shape"
        for read in reads:
            read.input[1] = met
        own = [value.name for value in written[-2:]]
        nodes[reads[-1].output[0]] = [*_meeting(layer, own, shape, met), *reads]
        arrived.append(_declare(arrived_name(layer), TensorProto.INT64, ["shares"]))
        arrivals.append(_scalar(arrival_name(layer)))
    kept = [NodeProto.FromString(n.SerializeToString()) for group in nodes.values() for n in group]
    inputs = [v for v in graph.input if v.name not in pool_names(geometry)]
    outputs = [v for v in graph.output if v.name not in fresh_names(geometry)]
    for field in ("node", "input", "output"):
        graph.ClearField(field)
    graph.node.extend(kept)
    graph.input.extend([*inputs, *lines, *arrived])
    graph.output.extend([*outputs, *written, *arrivals])
    graph.initializer.append(helper.make_tensor(_TRUE, TensorProto.BOOL, [], [True]))


def _written(pool: str, readers: Readers) -> tuple[NodeProto, NodeProto, NodeProto]:
    """What makes lines of a layer's pool, what writes to them, and what makes a pool of them."""
    path: list[NodeProto] = []
    for wanted in ("Reshape", "ScatterND", "Reshape"):
        found = readers.get(path[-1].output[0] if path else pool, [])
        if [node.op_type for node in found] != [wanted]:
            used = ", ".join(node.op_type for node in found) or "nothing"
            raise ValueError(f"{pool} goes to {used}, not to one {wanted}")
        path += found
    flat, write, read = path
    return flat, write, read


def _meeting(layer: int, written: list[str], shape: str, met: str) -> Iterator[NodeProto]:
    """`met` is `shape`, as soon as all shares have written their K/V."""

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
        return helper.make_node(op, inputs, [output], name=output, **attributes)

    prefix, arrival = f"meetings/{layer}", arrival_name(layer)
    sizes = [f"{prefix}/size_{kind}" for kind in "kv"]
    for value, size in zip(written, sizes, strict=True):
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
    yield node("Loop", ["", _TRUE, shape], met, body=body)


def _scalar(name: str) -> ValueInfoProto:
    return _declare(name, TensorProto.INT64, [])


def _declare(name: str, dtype: int, shape: list[str | int]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)
