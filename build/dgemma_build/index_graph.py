"""An emitted graph in two: what the places of a pass's rows decide, and everything else.

Knows which values are computed from nothing but where rows stand; knows nothing of what they mean
or of what runs the graphs.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from dgemma.engine.graph import INDEX_INPUTS


def split_index(model: ModelProto) -> tuple[ModelProto, ModelProto]:
    """The graph of masks, rotary tables and places of keys, and the graph that reads them.

    Both have the inputs of `model` that they need; the outputs of the first are inputs of the
    second, which has all outputs of `model`.
    """
    graph = model.graph
    first, second = _sorted(graph)
    read = {name for node in second for name in node.input}
    known = {value.name: value for value in graph.value_info}
    passed = [known[name] for node in first for name in node.output if name in read]
    return (
        _with(model, first, graph.input, passed),
        _with(model, second, [*graph.input, *passed], graph.output),
    )


def _sorted(graph: GraphProto) -> tuple[list[NodeProto], list[NodeProto]]:
    """Nodes that see places alone, and the others.

    Of other inputs the shape is a place, but for `room`: a pass that is run again has another.
    """
    inputs = {value.name for value in graph.input} - {"room"}
    places = set(INDEX_INPUTS) & inputs
    # A scalar of a layer costs nothing to hold twice.
    constants = {"", *(t.name for t in graph.initializer), *filter(None, map(_scalar, graph.input))}
    results = {value.name for value in graph.output}
    first: list[NodeProto] = []
    second: list[NodeProto] = []
    for node in graph.node:
        seen = places | inputs if node.op_type == "Shape" else places
        variable = set(node.input) - constants
        placed = bool(variable) and variable <= seen and results.isdisjoint(node.output)
        (first if placed else second).append(node)
        if placed:
            places.update(node.output)
    return first, second


def _scalar(value: ValueInfoProto) -> str | None:
    """The name of an input of one element."""
    axes = value.type.tensor_type.shape.dim
    return value.name if all(axis.dim_value == 1 for axis in axes) else None


def _with(
    model: ModelProto,
    nodes: Iterable[NodeProto],
    inputs: Iterable[ValueInfoProto],
    outputs: Iterable[ValueInfoProto],
) -> ModelProto:
    """A model like `model` of these nodes, with the inputs and initialisers that they read."""
    new = ModelProto()
    new.CopyFrom(model)
    graph = new.graph
    # Without the sizes of values in between, whose arithmetic makes onnxruntime plan worse.
    for field in ("node", "input", "output", "initializer", "value_info"):
        graph.ClearField(field)
    graph.node.extend(nodes)
    graph.output.extend(outputs)
    read = {name for node in graph.node for name in node.input}
    read.update(value.name for value in graph.output)  # some are constants
    graph.input.extend(value for value in inputs if value.name in read)
    graph.initializer.extend(each for each in model.graph.initializer if each.name in read)
    return new
