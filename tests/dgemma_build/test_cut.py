from __future__ import annotations

import pytest
from onnx import GraphProto, NodeProto, TensorProto
from onnx.helper import make_graph, make_node, make_tensor_value_info

from dgemma_build.cut import BEFORE, cut, layer_of, renamed


def graph(nodes: list[NodeProto]) -> GraphProto:
    inputs = ["ids", "pool_k.0", "embed.weight", "layers.0.w", "layers.1.w", "norm.weight"]
    values = [make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in inputs]
    return make_graph(nodes, "graph", values, [])


def node(operation: str, inputs: str, output: str) -> NodeProto:
    return make_node(operation, inputs.split(), [output], name=output)


NODES = [
    node("Gather", "embed.weight ids", "x"),
    node("Cast", "x", "x32"),
    node("Shape", "pool_k.0", "size"),
    node("Mul", "x32 layers.0.w", "inner"),
    node("Add", "x inner", "y"),
    node("ReduceMax", "inner", "load_0"),
    node("Cast", "y", "y32"),
    node("Mul", "y32 layers.1.w", "inner_1"),
    node("Reshape", "inner_1 size", "shaped"),
    node("Add", "y shaped", "z"),
    node("ReduceMax", "inner_1", "load_1"),
    node("Cast", "z", "z32"),
    node("Mul", "z32 norm.weight", "hidden"),
    node("Concat", "load_0 load_1", "loads"),
    node("ReduceMax", "loads", "load"),
]


def names(nodes: list[NodeProto]) -> list[str]:
    return [n.name for n in nodes]


def test_a_node_belongs_to_the_last_layer_that_it_is_computed_from() -> None:
    parts = cut(graph(NODES), 2)
    assert names(parts.before) == ["x"]
    assert names(parts.layers[0]) == ["x32", "size", "inner", "y", "load_0"]
    assert names(parts.layers[1]) == ["y32", "inner_1", "shaped", "z", "load_1"]
    assert names(parts.after) == ["z32", "hidden", "loads", "load"]
    assert parts.stack == "loads"


def test_the_residual_stream_is_what_enters_before_any_cast() -> None:
    """Also after the last layer, where nothing but the cast is read."""
    assert cut(graph(NODES), 2).residual == ["x", "y", "z"]


def test_a_graph_without_loads_has_no_stack() -> None:
    parts = cut(graph(NODES[:-2]), 2)
    assert parts.stack is None
    assert names(parts.after) == ["z32", "hidden"]


def test_a_second_value_between_layers_is_refused() -> None:
    crossing = [*NODES[:9], node("Add", "inner shaped", "z"), *NODES[10:]]
    with pytest.raises(ValueError, match="residual stream enters layer 1"):
        cut(graph(crossing), 2)


@pytest.mark.parametrize(
    ("name", "layer", "moved"),
    [
        ("layers.3.mlp.up_proj.weight", 3, "layers.7.mlp.up_proj.weight"),
        ("pool_k.12", 12, "pool_k.7"),
        ("fresh_v.0", 0, "fresh_v.7"),
        ("linear_3", BEFORE, "layers.7/linear_3"),
        ("embed_tokens.weight", BEFORE, "layers.7/embed_tokens.weight"),
    ],
)
def test_names_of_layers(name: str, layer: int, moved: str) -> None:
    assert layer_of(name) == layer
    assert renamed(name, 7) == moved
